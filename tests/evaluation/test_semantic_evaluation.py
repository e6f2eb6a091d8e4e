"""Semantic figures, and box AP on a panoptic dataset without an instance file."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hotcoco.semantic import SemanticEval
from PIL import Image

from resnest_det.data.panoptic import load_coco_panoptic
from resnest_det.data.panoptic_png import encode_segment_ids
from resnest_det.data.semantic import SemanticFiles, load_semantic
from resnest_det.drawing.panoptic import draw_panoptic
from resnest_det.drawing.writers import PanopticWriter, Pictures, SemanticWriter
from resnest_det.errors import UserError
from resnest_det.evaluation.coco import COCOEvaluator
from resnest_det.evaluation.semantic import SemSegEvaluator, semantic_figures

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def dataset(tmp_path):
    """Two images: sky over grass, on which a box lies; the lowest row is void. Boxes are things, leaves are nowhere."""
    for folder in ("images", "panoptic"):
        (tmp_path / folder).mkdir()
    categories = [
        {"id": 3, "name": "box", "isthing": 1},
        {"id": 7, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
        {"id": 8, "name": "grass", "isthing": 0, "color": [0, 255, 0]},
        {"id": 9, "name": "leaves", "isthing": 0},
    ]
    content = {"images": [], "annotations": [], "categories": categories}
    for image_id in (1, 2):
        ids = np.full((HEIGHT, WIDTH), 10)
        ids[20:], ids[25:35, 5:15], ids[-1] = 1000, 70000, 0
        (tmp_path / "panoptic" / f"{image_id}.png").write_bytes(encode_segment_ids(ids, ""))
        Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)).save(tmp_path / "images" / f"{image_id}.jpg")
        content["images"].append({"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id}.jpg"})
        segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((10, 7), (1000, 8), (70000, 3))]
        content["annotations"].append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return load_coco_panoptic("invented", str(tmp_path / "panoptic.json"), str(tmp_path / "panoptic"), str(tmp_path / "images"))


def scores_of(labels, classes=4):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), classes).permute(2, 0, 1).float()


def test_figures_of_a_known_prediction(dataset):
    """Everything above row 22 is called sky: two rows of grass too many."""
    labels = np.full((HEIGHT, WIDTH), 2)
    labels[:22], labels[25:35, 5:15] = 1, 0
    evaluator = SemSegEvaluator(dataset)
    for image_id in (1, 2):
        evaluator.process([{"image_id": image_id}], [{"sem_seg": scores_of(labels)}])
    figures = evaluator.evaluate()["sem_seg"]
    things, sky, grass, missed = 100, 20 * WIDTH, 19 * WIDTH - 100, 2 * WIDTH
    iou = {"things": 1.0, "sky": sky / (sky + missed), "grass": (grass - missed) / grass}
    assert figures["IoU-sky"] == pytest.approx(100 * iou["sky"], abs=1e-12)
    assert figures["IoU-grass"] == figures["ACC-grass"] == pytest.approx(100 * iou["grass"], abs=1e-12)
    assert math.isnan(figures["IoU-leaves"]) and math.isnan(figures["ACC-leaves"])
    assert figures["mIoU"] == pytest.approx(100 * sum(iou.values()) / 3, abs=1e-12)
    assert figures["mACC"] == pytest.approx(100 * (1 + 1 + iou["grass"]) / 3, abs=1e-12)
    labelled = things + sky + grass
    assert figures["pACC"] == pytest.approx(100 * (labelled - missed) / labelled, abs=1e-12)
    weighted = (things * iou["things"] + sky * iou["sky"] + grass * iou["grass"]) / labelled
    assert figures["fwIoU"] == pytest.approx(100 * weighted, abs=1e-12)


@pytest.fixture
def labelled(tmp_path):
    """An image whose label PNG has 9 where there is no label: sky over grass, the lowest row unlabelled."""
    for folder in ("pictures", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[20:], labels[-1] = 1, 9
    Image.fromarray(labels).save(tmp_path / "labels" / "1.png")
    Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)).save(tmp_path / "pictures" / "1.jpg")
    classes = [{"name": "sky", "color": [0, 0, 255]}, {"name": "grass", "color": [0, 255, 0]}, {"name": "leaves"}]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    files = SemanticFiles(str(tmp_path / "labels"), str(tmp_path / "pictures"), str(tmp_path / "classes.json"), 9)
    return load_semantic("labelled", files)


def test_pixels_without_a_label_count_nowhere_whatever_their_value(labelled):
    predicted = np.zeros((HEIGHT, WIDTH), dtype=int)
    predicted[30:] = 1
    evaluator = SemSegEvaluator(labelled)
    evaluator.process([{"image_id": 1}], [{"sem_seg": scores_of(predicted, 3)}])
    figures = evaluator.evaluate()["sem_seg"]
    assert figures["IoU-sky"] == pytest.approx(100 * 20 / 30, abs=1e-12)
    assert figures["IoU-grass"] == pytest.approx(100 * 9 / 19, abs=1e-12)
    assert figures["pACC"] == pytest.approx(100 * 29 / 39, abs=1e-12) and math.isnan(figures["IoU-leaves"])


def test_pictures_of_classes_show_truth_and_prediction(labelled, tmp_path):
    writer = SemanticWriter(labelled, str(tmp_path / "drawn"))
    writer.process([{"image_id": 1}], [{"sem_seg": scores_of(np.ones((HEIGHT, WIDTH), dtype=int), 3)}])
    writer.report()
    sheet = np.asarray(Image.open(tmp_path / "drawn" / "1_semantic.png")).astype(int)
    truth, prediction = sheet[26:, :480], sheet[26:, 488:]
    blue, green = (51, 51, 204), (51, 204, 51)
    assert np.abs(truth[5, 5] - blue).max() <= 1 and np.abs(truth[300, 300] - green).max() <= 1
    assert np.abs(truth[-2, 5] - 128).max() <= 1, "without a label"
    assert np.abs(prediction[5, 5] - green).max() <= 1 and np.abs(prediction[-2, 5] - green).max() <= 1


def test_figures_of_random_counts_follow_the_definition():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 50, (5, 5))
    pixels[:, 3] = 0
    figures = semantic_figures(pixels, list("abcde"))
    iou = [pixels[c, c] / (pixels[c].sum() + pixels[:, c].sum() - pixels[c, c]) for c in (0, 1, 2, 4)]
    assert figures["mIoU"] == pytest.approx(100 * np.mean(iou), abs=1e-12)
    assert [figures[f"IoU-{c}"] for c in "abce"] == pytest.approx([100 * v for v in iou], abs=1e-12)
    assert figures["pACC"] == pytest.approx(100 * np.trace(pixels) / pixels.sum(), abs=1e-12)


def test_a_prediction_of_other_classes_size_or_image_is_named(dataset):
    evaluator = SemSegEvaluator(dataset)
    with pytest.raises(UserError, match="predicts 5 semantic classes, invented has 4"):
        evaluator.process([{"image_id": 1}], [{"sem_seg": torch.zeros(5, HEIGHT, WIDTH)}])
    with pytest.raises(UserError, match="image 1 of invented: the semantic truth is"):
        evaluator.process([{"image_id": 1}], [{"sem_seg": torch.zeros(4, HEIGHT, WIDTH + 1)}])
    with pytest.raises(UserError, match="invented has no image 5"):
        evaluator.process([{"image_id": 5}], [{"sem_seg": torch.zeros(4, HEIGHT, WIDTH)}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(evaluator.evaluate()["sem_seg"]["mIoU"])


def test_thing_segments_are_the_truth_of_box_and_mask_ap(dataset):
    assert dataset.metadata.json_file is None
    evaluator = COCOEvaluator(dataset)
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 25:35, 5:15] = True
    output = {
        "boxes": torch.tensor([[5.0, 25, 15, 35]]),
        "scores": torch.tensor([0.9]),
        "classes": torch.tensor([0]),
        "masks": masks,
    }
    nothing = {key: value[:0] for key, value in output.items()}
    evaluator.process([{"image_id": 1}, {"image_id": 2}], [output, output])
    results = evaluator.evaluate()
    assert results["bbox"]["AP-box"] == results["segm"]["APs"] == results["segm"]["AP"] == 100
    evaluator.process([{"image_id": 2}], [nothing])
    assert 50 <= evaluator.evaluate()["segm"]["AP"] < 51
    with pytest.raises(UserError, match="no image 3"):
        evaluator.process([{"image_id": 3}], [output])


def test_panoptic_overlay_colors_segments_and_leaves_void():
    image = Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100))
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    ids[:20, :30], ids[:20, 30:] = 4, 9
    segments = [{"id": 4, "label": "a", "color": (255, 0, 0)}, {"id": 9, "label": "b", "color": (255, 0, 0)}]
    picture = np.asarray(draw_panoptic(image, ids, segments)).astype(int)
    assert picture.shape == (320, 480, 3)
    assert (picture[10, 10] == [193, 40, 40]).all()
    first, second, void = picture[10, 10], picture[10, 470], picture[300, 240]
    assert (void == 100).all()
    assert second[0] > second[1] > first[1] and second[1] == second[2]
    assert (picture[10, 239] == 255).all() and (picture[159, 10] == 255).all()
    without_name = np.asarray(draw_panoptic(image, ids, [{**s, "label": ""} for s in segments])).astype(int)
    named = (picture != without_name).any(axis=2)
    assert named[:, :240].any() and named[:, 240:].any() and not named[180:].any()


def test_panoptic_pictures_show_truth_and_prediction(dataset, tmp_path):
    writer = PanopticWriter(dataset, str(tmp_path / "pictures"), Pictures(count=1))
    ids = torch.ones(HEIGHT, WIDTH, dtype=torch.int32)
    sky = {"id": 1, "isthing": False, "category_id": 1, "area": HEIGHT * WIDTH}
    for image_id in (1, 2):
        writer.process([{"image_id": image_id}], [{"panoptic_seg": (ids, [sky])}])
    writer.report()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["1_panoptic.png"]
    sheet = np.asarray(Image.open(tmp_path / "pictures" / "1_panoptic.png")).astype(int)
    truth, prediction = sheet[26:, :480], sheet[26:, 488:]
    blue, green = (51, 51, 204), (51, 204, 51)
    assert np.abs(truth[5, 5] - blue).max() <= 1 and np.abs(truth[300, 300] - green).max() <= 1
    assert np.abs(prediction[5, 5] - blue).max() <= 1 and np.abs(prediction[300, 300] - blue).max() <= 1


def test_the_panoptic_map_with_the_most_wrong_pixels_is_drawn_by_choice(dataset, tmp_path):
    writer = PanopticWriter(dataset, str(tmp_path / "pictures"), Pictures(count=1, worst=True))
    ids = torch.ones(HEIGHT, WIDTH, dtype=torch.int32)
    halves = torch.where(torch.arange(HEIGHT)[:, None] < 20, ids, 2 * ids)
    sky, grass = ({"id": i, "isthing": False, "category_id": i, "area": 1} for i in (1, 2))
    writer.process([{"image_id": 1}], [{"panoptic_seg": (halves, [sky, grass])}])
    assert writer.errors(writer.records[1], {"panoptic_seg": (halves, [sky, grass])}) == pytest.approx(100 / (39 * WIDTH))
    writer.process([{"image_id": 2}], [{"panoptic_seg": (ids, [sky])}])
    writer.report()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["01_2_panoptic.png"]


def test_figures_are_those_of_torchmetrics():
    """To the last digit that is printed (three decimals); hotcoco counts, torchmetrics in its own way."""
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.integers(0, 19, (6, 64, 96)))
    predicted = torch.where(
        torch.from_numpy(rng.random(truth.shape) < 0.7), truth, torch.from_numpy(rng.integers(0, 19, truth.shape))
    )
    truth[torch.from_numpy(rng.random(truth.shape) < 0.1)] = 255
    counting = SemanticEval(19, ignore_index=255)
    for image in zip(truth, predicted):
        counting.update(*(each.to(torch.uint8).numpy() for each in image))
    figures = semantic_figures(counting.confusion().astype(np.int64).T, [str(number) for number in range(19)])
    given = dict(num_classes=19, ignore_index=255)
    iou = functional.multiclass_jaccard_index(predicted, truth, average=None, **given)
    accuracy = functional.multiclass_accuracy(predicted, truth, average=None, **given)
    expected = {f"IoU-{number}": value for number, value in enumerate(iou)}
    expected |= {f"ACC-{number}": value for number, value in enumerate(accuracy)}
    expected |= {
        "mIoU": functional.multiclass_jaccard_index(predicted, truth, average="macro", **given),
        "fwIoU": functional.multiclass_jaccard_index(predicted, truth, average="weighted", **given),
        "pACC": functional.multiclass_accuracy(predicted, truth, average="micro", **given),
        "mACC": functional.multiclass_accuracy(predicted, truth, average="macro", **given),
    }
    assert {name: f"{value:.3f}" for name, value in figures.items()} == {
        name: f"{100 * float(value):.3f}" for name, value in expected.items()
    }


def test_processes_count_together(labelled, monkeypatch):
    """Each has its own images; the sum of their counts is the count of one that had all."""
    rng = np.random.default_rng(0)
    parts, whole = [], SemSegEvaluator(labelled)
    for _ in range(2):
        evaluator, scores = SemSegEvaluator(labelled), torch.from_numpy(rng.random((3, HEIGHT, WIDTH)))
        for each in (evaluator, whole):
            each.process([{"image_id": 1}], [{"sem_seg": scores}])
        parts.append(evaluator.counting.confusion().astype(np.int64).T)
    monkeypatch.setattr("resnest_det.evaluation.semantic.gather_objects", lambda own: parts)
    together = SemSegEvaluator(labelled).evaluate()
    monkeypatch.undo()
    assert {k: v for k, v in together["sem_seg"].items() if v == v} == {
        k: v for k, v in whole.evaluate()["sem_seg"].items() if v == v
    }
