"""COCO figures against pycocotools to the last digit, and how COCOEvaluator treats unusual datasets and outputs."""

import contextlib
import copy
import errno
import io
import json
import math
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnest_det.data.coco import load_coco_instances
from resnest_det.errors import UserError
from resnest_det.evaluation.average_precision import FIGURES, coco_figures, counted
from resnest_det.evaluation.coco import COCOEvaluator
from resnest_det.evaluation.ground_truth import ground_truth_of_instances, read_ground_truth, with_run_lengths
from resnest_det.evaluation.masks import encode_masks, segmentation_to_mask

HEIGHT, WIDTH = 60, 80


def by_pycocotools(ground_truth, detections, task, max_detections):
    detections = copy.deepcopy(detections)
    if task == "segm":
        for detection in detections:
            del detection["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), task)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def pycocotools_figures(ground_truth, detections, task):
    """The twelve figures and AP of each category by pycocotools alone."""
    evaluation = by_pycocotools(ground_truth, detections, task, 100)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    stats = [100 * value if value > -1 else math.nan for value in evaluation.stats]
    figures = dict(zip(FIGURES, stats))
    for index, category in enumerate(ground_truth["categories"]):
        precision = evaluation.eval["precision"][:, :, index, 0, -1]
        precision = precision[precision > -1]
        figures[f"AP-{category['name']}"] = 100 * float(np.mean(precision)) if precision.size else math.nan
    return figures


def box_mask(box, rng):
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[int(y) : math.ceil(y + height), int(x) : math.ceil(x + width)] = 1
    mask[rng.integers(HEIGHT)] &= rng.integers(2, dtype=np.uint8)
    run_lengths = mask_util.encode(np.asfortranarray(mask))
    return {"size": run_lengths["size"], "counts": run_lengths["counts"].decode()}


def random_case(seed, images=6, categories=3, most_objects=8, most_detections=20):
    """Ground truth and detections with crowds, ties, empty images, a category without objects and objects of all sizes."""
    rng = np.random.default_rng(seed)

    def random_box():
        x, y = rng.uniform(0, WIDTH - 4), rng.uniform(0, HEIGHT - 4)
        box = [x, y, rng.uniform(2, WIDTH - x), rng.uniform(2, HEIGHT - y)]
        return [float(int(v)) for v in box] if rng.random() < 0.5 else box

    truth = {
        "images": [{"id": 7 * i + 3, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": 3 * c + 1, "name": f"category {c}"} for c in range(categories + 1)],
        "annotations": [],
    }
    detections = []
    for image in truth["images"]:
        objects = []
        for _ in range(rng.integers(0, most_objects + 1) if rng.random() > 0.15 else 0):
            box = random_box()
            area = box[2] * box[3] * rng.choice([0.1, 1, 1, 20])
            objects.append(
                {
                    "id": len(truth["annotations"]) + len(objects) + 1,
                    "image_id": image["id"],
                    "bbox": box,
                    "category_id": int(3 * rng.integers(categories) + 1),
                    "iscrowd": int(rng.random() < 0.2),
                    "segmentation": box_mask(box, rng),
                    "area": float(rng.choice([area, area, 32.0**2, 96.0**2])),
                }
            )
        truth["annotations"] += objects
        for _ in range(rng.integers(0, most_detections + 1) if rng.random() > 0.15 else 0):
            box, category = random_box(), int(3 * rng.integers(categories) + 1)
            if objects and rng.random() < 0.7:
                near = objects[rng.integers(len(objects))]
                category = near["category_id"]
                jitter = rng.normal(size=4) * rng.choice([0, 1, 4])
                box = [float(max(v + j, low)) for v, j, low in zip(near["bbox"], jitter, (0, 0, 1, 1))]
            detections.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "score": float(rng.choice([rng.random(), round(rng.random(), 1), 0.5])),
                    "segmentation": box_mask(box, rng),
                }
            )
    return truth, detections


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        ours[k] == theirs[k] or (math.isnan(ours[k]) and math.isnan(theirs[k])) for k in ours
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([3, 20, 130]), st.integers(1, 3))
def test_figures_equal_pycocotools_to_the_last_digit(seed, most_detections, categories):
    truth, detections = random_case(seed, categories=categories, most_detections=most_detections)
    if not detections or not truth["annotations"]:
        return
    for task in ("bbox", "segm"):
        ours, theirs = coco_figures(truth, detections, task), pycocotools_figures(truth, detections, task)
        assert same(ours, theirs), {k: (ours[k], theirs[k]) for k in theirs if ours[k] != theirs[k]}
        arrays = counted(truth, detections, (task,), 30)[task].eval
        expected = by_pycocotools(truth, detections, task, 30).eval
        assert all(np.array_equal(arrays[name], expected[name]) for name in ("precision", "recall"))


def _alike(truth, detections):
    for detection in detections:
        detection.update(score=0.5, bbox=[10.0, 10.0, 20.0, 20.0])


def _crowds(truth, detections):
    for annotation in truth["annotations"][::2]:
        annotation["iscrowd"] = 1


def _tiny(truth, detections):
    for entry in (*truth["annotations"], *detections):
        entry["bbox"] = [side / 4096 for side in entry["bbox"]]


def _odd_scores(truth, detections):
    for index, detection in enumerate(detections):
        detection["score"] = (-1.5, 0.0, 1e-30, 7.25, 1e9)[index % 5]


def _areas_at_the_borders(truth, detections):
    for index, annotation in enumerate(truth["annotations"]):
        annotation["area"] = (32**2, 96**2, 32**2 - 1e-9, 96**2 + 1e-9, 1e5**2)[index % 5]


def _only_one_image_with_truth(truth, detections):
    first = truth["annotations"][0]["image_id"]
    truth["annotations"] = [annotation for annotation in truth["annotations"] if annotation["image_id"] == first]


@pytest.mark.parametrize(
    "change",
    [_alike, _crowds, _tiny, _odd_scores, _areas_at_the_borders, _only_one_image_with_truth],
    ids=lambda each: each.__name__,
)
def test_figures_equal_pycocotools_for_what_counting_stumbles_over(change):
    truth, detections = random_case(7, most_detections=30)
    change(truth, detections)
    ours, theirs = coco_figures(truth, detections, "bbox"), pycocotools_figures(truth, detections, "bbox")
    assert same(ours, theirs), {k: (ours[k], theirs[k]) for k in theirs if ours[k] != theirs[k]}


@pytest.mark.parametrize("first_wrong", [1, 2, 3])
def test_precision_of_one_equals_pycocotools_where_objects_are_many(first_wrong):
    """More than 200 objects: recall bins no longer tell whether one or two detections were right before the first mistake."""
    rng = np.random.default_rng(first_wrong)
    truth = {"images": [{"id": 1, "height": HEIGHT, "width": WIDTH}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    detections = []
    for i in range(250):
        truth["images"].append({"id": i + 2, "height": HEIGHT, "width": WIDTH})
        box = [float(rng.integers(20)), float(rng.integers(20)), 20.0, 20.0]
        truth["annotations"].append({"id": i + 1, "image_id": i + 2, "category_id": 1, "bbox": box, "area": 400.0, "iscrowd": 0})
        wrong = i == first_wrong or (i > first_wrong and rng.random() < 0.4)
        detections.append(
            {"image_id": i + 2, "category_id": 1, "score": 1 - i / 300, "bbox": [60.0, 40.0, 9.0, 9.0] if wrong else box}
        )
    ours, theirs = counted(truth, detections, ("bbox",), 100)["bbox"].eval, by_pycocotools(truth, detections, "bbox", 100).eval
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("precision", "recall"))
    assert theirs["precision"].max() == (1 / (1 + np.spacing(1)) if first_wrong == 1 else 1)


def test_limit_on_detections_takes_the_place_of_100():
    """The two objects are found by the 51st and the 151st detection."""
    objects = [[0.0, 0.0, 20.0, 20.0], [40.0, 30.0, 20.0, 20.0]]
    truth = {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 400.0, "iscrowd": 0}
            for i, box in enumerate(objects)
        ],
    }
    boxes = {50: objects[0], 150: objects[1]}
    detections = [
        {"image_id": 1, "category_id": 1, "score": 1 - i / 300, "bbox": boxes.get(i, [70.0, 0, 5, 5])} for i in range(200)
    ]
    for limit, recall in ((20, 0), (100, 50), (300, 100)):
        assert coco_figures(truth, detections, "bbox", limit)["AR100"] == recall
        ours, theirs = counted(truth, detections, ("bbox",), limit)["bbox"], by_pycocotools(truth, detections, "bbox", limit)
        assert np.array_equal(ours.eval["precision"], theirs.eval["precision"])


def dataset_of(path, truth):
    path.write_text(json.dumps(truth))
    return load_coco_instances("invented", str(path), str(path.parent), keep_truth=True)


def outputs_of(truth, detections):
    """Detections grouped into (sample, model output) for every image of the ground truth."""
    ids = sorted(category["id"] for category in truth["categories"])
    pairs = []
    for image in truth["images"]:
        mine = [d for d in detections if d["image_id"] == image["id"]]
        boxes = torch.tensor([d["bbox"] for d in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [torch.from_numpy(segmentation_to_mask(d["segmentation"], HEIGHT, WIDTH)).bool() for d in mine]
        pairs.append(
            (
                {"image_id": image["id"], "height": HEIGHT, "width": WIDTH},
                {
                    "boxes": boxes,
                    "scores": torch.tensor([d["score"] for d in mine]),
                    "classes": torch.tensor([ids.index(d["category_id"]) for d in mine], dtype=torch.int64),
                    "masks": torch.stack(masks) if masks else torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool),
                },
            )
        )
    return pairs


def test_evaluator_writes_results_that_pycocotools_scores_the_same(tmp_path):
    truth, detections = random_case(5, most_detections=30)
    evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", truth), output_dir=str(tmp_path / "out"))
    for sample, output in outputs_of(truth, detections):
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(written) == len(detections)
    assert set(written[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert {d["category_id"] for d in written} == {1, 4, 7}
    for task in ("bbox", "segm"):
        assert same(results[task], pycocotools_figures(truth, written, task))
    assert math.isnan(results["bbox"]["AP-category 3"])
    assert 0 < results["segm"]["AP"] < 100

    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP"] == 0


def test_no_detections_give_zero_where_there_is_truth_and_nan_elsewhere(tmp_path, caplog):
    truth, _ = random_case(5)
    evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", truth), output_dir=str(tmp_path))
    for sample, output in outputs_of(truth, []):
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert [results[task][k] for k in ("AP", "AP50", "AR1", "AR100", "AP-category 0")] == [0] * 5
        assert math.isnan(results[task]["AP-category 3"])
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []
    assert "no detections on" in caplog.text


def test_images_that_were_not_predicted_count_as_empty(tmp_path, caplog):
    truth, detections = random_case(5)
    pairs = outputs_of(truth, detections)
    evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", truth), tasks=("bbox",), output_dir=str(tmp_path))
    for sample, output in pairs[1:]:
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    assert "1 of 6 images of invented were not predicted" in caplog.text
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert truth["images"][0]["id"] not in {d["image_id"] for d in written}
    assert same(results["bbox"], pycocotools_figures(truth, written, "bbox"))


def test_data_set_without_info_area_and_iscrowd(tmp_path):
    truth, detections = random_case(5)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
        annotation["area"] = float(mask_util.area(annotation["segmentation"]))
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    scores = []
    for content in (truth, bare):
        evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", content))
        for sample, output in outputs_of(truth, detections):
            evaluator.process([sample], [output])
        scores.append(evaluator.evaluate())
    assert same(scores[0]["bbox"], scores[1]["bbox"]) and same(scores[0]["segm"], scores[1]["segm"])

    for annotation in bare["annotations"]:
        del annotation["segmentation"]
    boxes_only = ground_truth_of_instances(dataset_of(tmp_path / "boxes.json", bare))
    box = bare["annotations"][0]["bbox"]
    assert boxes_only["annotations"][0]["area"] == box[2] * box[3]


def test_polygons_and_uncompressed_run_lengths_of_the_truth(tmp_path):
    truth, _ = random_case(5, images=1)
    counts = [0, 30 * HEIGHT, 50 * HEIGHT]
    square = {"image_id": 3, "category_id": 1}
    truth["annotations"] = [
        {**square, "id": 1, "bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]},
        {**square, "id": 2, "bbox": [0, 0, 30, 60], "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
    ]
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 10:30, 10:30] = True
    masks[1, :, :30] = True
    evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", truth))
    evaluator.process(
        [{"image_id": 3}],
        [
            {
                "boxes": torch.tensor([[10.0, 10, 30, 30], [0, 0, 30, 60]]),
                "masks": masks,
                "scores": torch.tensor([0.9, 0.8]),
                "classes": torch.tensor([0, 0]),
            }
        ],
    )
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == results["bbox"]["AP"] == 100


def _renumbered(truth, image_ids, annotation_ids):
    """The same truth under other ids; image ids in ascending order, which decides between equal scores."""
    images = dict(zip(sorted(image["id"] for image in truth["images"]), sorted(image_ids)))
    truth = copy.deepcopy(truth)
    for image in truth["images"]:
        image["id"] = images[image["id"]]
    for annotation, number in zip(truth["annotations"], annotation_ids):
        annotation |= {"id": number, "image_id": images[annotation["image_id"]]}
    return truth, images


@pytest.mark.parametrize(
    "image_ids, first",
    [
        (range(2**53, 2**53 + 6), 1),
        (range(2**63 - 2, 2**63 + 4), 2**63),
        (range(-6, 0), -(10**30)),
        ([-5, 0, 3, 10**18, 10**18 + 1, 10**40], 0),
        (range(6), -3),
    ],
)
def test_ids_mean_nothing_to_the_figures_and_stay_in_the_results(tmp_path, image_ids, first):
    truth, detections = random_case(5, most_detections=30)
    expected = {task: pycocotools_figures(truth, detections, task) for task in ("bbox", "segm")}
    renumbered, images = _renumbered(truth, image_ids, range(first, first + 1000))
    evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", renumbered), output_dir=str(tmp_path))
    moved = [detection | {"image_id": images[detection["image_id"]]} for detection in detections]
    for sample, output in outputs_of(renumbered, moved):
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {d["image_id"] for d in written} == {d["image_id"] for d in moved}
    back = {new: old for old, new in images.items()}
    for task in ("bbox", "segm"):
        theirs = pycocotools_figures(truth, [d | {"image_id": back[d["image_id"]]} for d in written], task)
        assert same(results[task], theirs)
        assert same(coco_figures(renumbered, moved, task), expected[task])


def test_a_file_is_read_for_coco_figures_and_for_pycocotools(tmp_path):
    truth, detections = random_case(5, most_detections=30)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    read = read_ground_truth(str(path))
    encoded = read | {"annotations": with_run_lengths(read, str(path))}
    for task in ("bbox", "segm"):
        expected = pycocotools_figures(truth, detections, task)
        assert same(coco_figures(read, detections, task), expected) and same(coco_figures(encoded, detections, task), expected)
        assert same(pycocotools_figures(read, detections, task), expected)
    path.write_text(json.dumps({key: truth[key] for key in ("images", "categories")}))
    with pytest.raises(UserError, match="truth.json has no annotations: there is nothing to evaluate against"):
        read_ground_truth(str(path))


def test_results_keep_ids_that_are_text(tmp_path):
    truth, detections = random_case(5, most_detections=30)
    named = copy.deepcopy(truth)
    for entry in (*named["images"], *named["annotations"], *named["categories"]):
        entry |= {key: f"{key} {value:04d}" for key, value in entry.items() if key.endswith("id")} | {"id": f"a{entry['id']:04d}"}
    for annotation in named["annotations"]:
        annotation |= {key: f"a{int(annotation[key][-4:]):04d}" for key in ("image_id", "category_id")}
    dataset = dataset_of(tmp_path / "truth.json", named)
    evaluator = COCOEvaluator(dataset, output_dir=str(tmp_path))
    for (sample, output), record in zip(outputs_of(truth, detections), dataset.records, strict=True):
        evaluator.process([sample | {"image_id": record["image_id"]}], [output])
    results = evaluator.evaluate()
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    back = [d | {key: int(d[key][1:]) for key in ("image_id", "category_id")} for d in written]
    for task in ("bbox", "segm"):
        assert same(results[task], pycocotools_figures(truth, back, task))


@pytest.mark.parametrize(
    "field, write",
    [
        ("iscrowd", str),
        ("iscrowd", float),
        ("iscrowd", bool),
        ("iscrowd", lambda value: value or None),
        ("area", str),
        ("id", str),
        ("id", float),
        ("image_id", str),
        ("category_id", str),
        ("bbox", lambda box: [str(side) for side in box]),
    ],
)
def test_however_a_number_is_written_the_figures_are_the_same(tmp_path, field, write):
    truth, detections = random_case(6, most_detections=30)
    written = copy.deepcopy(truth)
    for annotation in written["annotations"]:
        annotation[field] = write(annotation[field])
    read = ground_truth_of_instances(dataset_of(tmp_path / "truth.json", written))
    for task in ("bbox", "segm"):
        assert same(coco_figures(read, detections, task), pycocotools_figures(truth, detections, task))


def test_an_area_of_null_is_that_of_the_mask(tmp_path):
    truth, detections = random_case(5, most_detections=30)
    for annotation in truth["annotations"]:
        annotation["area"] = float(mask_util.area(annotation["segmentation"]))
    written = copy.deepcopy(truth)
    for annotation in written["annotations"]:
        annotation["area"] = None
    read = ground_truth_of_instances(dataset_of(tmp_path / "truth.json", written))
    expected = pycocotools_figures(truth, detections, "segm")
    assert not math.isnan(expected["APm"]) and same(coco_figures(read, detections, "segm"), expected)


def test_what_training_leaves_out_counts_as_truth(tmp_path):
    """Boxes with no area in the image, and masks of polygons without three points, which nothing finds."""
    truth, detections = random_case(5, most_detections=30)
    first, second, third = (next(a for a in truth["annotations"][n:] if not a["iscrowd"]) for n in (0, 4, 8))
    first["bbox"] = [WIDTH + 5.0, 2.0, 9.0, 9.0]
    second["bbox"] = [5.0, 5.0, 0.0, 9.0]
    third["segmentation"] = [[1, 1, 9, 9], [3, 3]]
    dataset = dataset_of(tmp_path / "truth.json", truth)
    kept = {a["id"] for record in dataset.records for a in record["annotations"]}
    assert {a["id"] for a in truth["annotations"]} - kept == {first["id"], second["id"], third["id"]}
    read = ground_truth_of_instances(dataset)
    assert same(coco_figures(read, detections, "bbox"), pycocotools_figures(truth, detections, "bbox"))
    third["segmentation"] = mask_util.frPyObjects({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, HEIGHT, WIDTH)
    assert same(coco_figures(read, detections, "segm"), pycocotools_figures(truth, detections, "segm"))


def test_polygons_count_as_pycocotools_rasterises_them(tmp_path):
    """Also where they overshoot the image, cross themselves or come in pieces."""
    truth, detections = random_case(8, most_detections=30)
    rng = np.random.default_rng(0)
    for annotation in truth["annotations"]:
        center, radius = rng.uniform((10, 10), (WIDTH - 10, HEIGHT - 10)), rng.uniform(3, 11)
        annotation["segmentation"] = [
            (center + radius * rng.uniform(-1, 1, (corners, 2))).round(2).reshape(-1).tolist() for corners in (3, 7)
        ]
    read = ground_truth_of_instances(dataset_of(tmp_path / "truth.json", truth))
    assert same(coco_figures(read, detections, "segm"), pycocotools_figures(truth, detections, "segm"))


def test_a_dataset_that_only_lists_images_is_predicted_and_not_counted(tmp_path, caplog):
    truth, detections = random_case(5)
    pairs = outputs_of(truth, detections)
    del truth["annotations"]
    evaluator = COCOEvaluator(dataset_of(tmp_path / "truth.json", truth), output_dir=str(tmp_path))
    for sample, output in pairs:
        evaluator.process([sample], [output])
    assert evaluator.evaluate() == {}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == len(detections)
    assert "lists images without annotations" in caplog.text


def _broken(path, change):
    truth, _ = random_case(5)
    change(truth)
    return dataset_of(path, truth)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.update(annotations=[]), "truth.json has no annotations"),
        (lambda t: t["annotations"][1].update(id=1), "annotation id 1 occurs more than once"),
        (lambda t: t["annotations"][1].pop("bbox"), 'annotation 2: the key "bbox" is missing'),
        (lambda t: t["annotations"][1].pop("segmentation"), "annotation 2 has no segmentation"),
    ],
)
def test_broken_ground_truth_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        COCOEvaluator(_broken(tmp_path / "truth.json", change))


def test_impossible_outputs_are_named(tmp_path):
    evaluator = COCOEvaluator(_broken(tmp_path / "truth.json", lambda t: None))
    good = {
        "boxes": torch.tensor([[0.0, 0, 9, 9]]),
        "scores": torch.tensor([0.5]),
        "classes": torch.tensor([0]),
        "masks": torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool),
    }
    with pytest.raises(UserError, match="no image 99"):
        evaluator.process([{"image_id": 99}], [good])
    with pytest.raises(UserError, match="image 3 of invented: predicted class 4, but invented has 4 classes"):
        evaluator.process([{"image_id": 3}], [{**good, "classes": torch.tensor([4])}])
    with pytest.raises(UserError, match="image 3 of invented: a predicted box or score is not finite"):
        evaluator.process([{"image_id": 3}], [{**good, "scores": torch.tensor([math.nan])}])
    with pytest.raises(UserError, match="the model predicts no masks"):
        evaluator.process([{"image_id": 3}], [{k: v for k, v in good.items() if k != "masks"}])


def test_results_that_cannot_be_written_leave_the_earlier_file(tmp_path, monkeypatch):
    evaluator = COCOEvaluator(_broken(tmp_path / "truth.json", lambda t: None), output_dir=str(tmp_path / "out"))
    evaluator.evaluate()
    before = (tmp_path / "out" / "coco_instances_results.json").read_text()

    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="coco_instances_results.json cannot be written"):
        evaluator.evaluate()
    assert (tmp_path / "out" / "coco_instances_results.json").read_text() == before
    assert os.listdir(tmp_path / "out") == ["coco_instances_results.json"]


def test_masks_are_encoded_as_pycocotools_encodes_them():
    masks = torch.rand(3, 37, 53, generator=torch.Generator().manual_seed(0)) > 0.6
    masks[1] = False
    expected = mask_util.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert [m["counts"].encode() for m in encode_masks(masks)] == [m["counts"] for m in expected]
    assert all(m["size"] == [37, 53] for m in encode_masks(masks))


def _evaluate_share(rank, folder, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    truth, detections = random_case(5, most_detections=30)
    evaluator = COCOEvaluator(dataset_of(folder / f"truth{rank}.json", truth), output_dir=str(folder))
    for sample, output in outputs_of(truth, detections)[rank::2]:
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    queue.put((rank, results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_evaluate_share, args=(rank, tmp_path, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    by_rank = dict(queue.get() for _ in range(2))
    assert by_rank[1] is None
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    truth, _ = random_case(5, most_detections=30)
    for task in ("bbox", "segm"):
        assert same(by_rank[0][task], pycocotools_figures(truth, written, task))


def test_a_dataset_without_its_truth_is_refused(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(UserError, match="dataset mine was read without its truth; read it with get_dataset"):
        COCOEvaluator(load_coco_instances("mine", str(path), str(tmp_path)))
