"""Pictures of predictions beside the truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det.data.coco import Dataset
from resnest_det.drawing.comparison import WRONG, draw_comparison, match_image
from resnest_det.drawing.sheets import save_picture, side_by_side
from resnest_det.drawing.writers import ObjectWriter, Pictures
from resnest_det.errors import UserError

GREY = Image.new("RGB", (120, 60), (128, 128, 128))
HEAD = 26


def instances(*boxes, masks=False, scores=None, crowd=None):
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "classes": torch.zeros(len(boxes), dtype=torch.int64),
    }
    if masks:
        found["masks"] = torch.zeros(len(boxes), 60, 120, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found["masks"], boxes):
            mask[y0:y1, x0:x1] = True
    if scores is not None:
        found["scores"] = torch.tensor(scores)
    if crowd is not None:
        found["crowd"] = torch.tensor(crowd)
    return found


def halves(picture):
    pixels = np.asarray(picture).astype(int)[HEAD:]
    return pixels[:, :480], pixels[:, 488:]


def changed(pixels):
    return (pixels != 128).any(axis=2)


def has_frame(pixels):
    return (pixels == WRONG).all(axis=2).sum() > 100


def test_comparison_draws_confident_predictions_on_the_right_only():
    truth, prediction = instances(), instances((30, 20, 90, 50), (0, 0, 10, 10), scores=[0.9, 0.2])
    picture = draw_comparison(GREY, truth, prediction, ["thing"])
    assert picture.size == (480 + 8 + 480, 240 + HEAD)
    left, right = map(changed, halves(picture))
    assert not left.any()
    assert right[80:200, 120].all() and not right[:40, :40].any()
    assert changed(halves(draw_comparison(GREY, truth, prediction, ["thing"], 0.1))[1])[:40, :40].any()


def test_missed_objects_and_false_detections_have_a_frame_and_matched_ones_have_none():
    there, elsewhere = (30, 20, 90, 50), (0, 0, 20, 15)
    matched = halves(draw_comparison(GREY, instances(there), instances(there, scores=[0.9]), ["thing"]))
    assert not any(map(has_frame, matched))
    wrong = halves(draw_comparison(GREY, instances(there), instances(elsewhere, scores=[0.9]), ["thing"]))
    assert all(map(has_frame, wrong))
    only_missed = halves(draw_comparison(GREY, instances(there, elsewhere), instances(there, scores=[0.9]), ["thing"]))
    assert list(map(has_frame, only_missed)) == [True, False]


def test_a_crowd_is_not_drawn_and_what_is_found_in_it_is_not_false():
    truth = instances((0, 0, 60, 60), crowd=[True])
    left, right = halves(draw_comparison(GREY, truth, instances((10, 10, 30, 30), scores=[0.9]), ["thing"]))
    assert not changed(left).any() and changed(right).any() and not has_frame(right)


def test_where_nothing_reaches_the_threshold_the_best_few_are_faint():
    truth = instances((0, 40, 10, 60))
    boxes = [(30 * i, 20, 30 * i + 25, 50) for i in range(4)]
    sure = halves(draw_comparison(GREY, truth, instances(*boxes, scores=[0.9] * 4), ["thing"]))[1]
    faint = halves(draw_comparison(GREY, truth, instances(*boxes, scores=[0.1, 0.2, 0.3, 0.4]), ["thing"]))[1]
    edges = [np.abs(picture[199, 120 * i + 50] - 128).sum() for i in range(4) for picture in (sure, faint)]
    strong, weak = edges[::2], edges[1::2]
    assert weak[0] == 0 and all(0 < faint_edge < sure_edge for faint_edge, sure_edge in zip(weak[1:], strong[1:]))
    assert not has_frame(faint)


def test_the_picture_without_any_prediction_is_the_image():
    picture = draw_comparison(GREY, instances(masks=True), instances(scores=[], masks=True), ["thing"])
    assert not changed(halves(picture)[1]).any()


def test_of_two_detections_of_an_object_the_better_one_matches():
    truth = instances((30, 20, 90, 50), (0, 0, 10, 10))
    matches = match_image(truth, instances((30, 20, 90, 50), (30, 20, 88, 50), scores=[0.8, 0.9]), (120, 60))
    assert matches.missed.tolist() == [False, True] and matches.false.tolist() == [True, False] and matches.errors == 2


@pytest.fixture
def dataset(tmp_path):
    """Ten images, of which those with an odd id have an object."""
    records = []
    for i in range(10):
        GREY.save(tmp_path / f"{i}.jpg")
        outline = [[30, 20, 90, 20, 90, 50, 30, 50]]
        annotation = {"id": 1, "bbox": [30, 20, 60, 30], "category_id": 0, "iscrowd": 0, "segmentation": outline}
        image = {"file_name": str(tmp_path / f"{i}.jpg"), "image_id": i, "height": 60, "width": 120}
        records.append(image | {"annotations": [annotation] if i % 2 else []})
    return Dataset("invented", records, SimpleNamespace(thing_classes=["thing"]))


def write(writer, dataset, subfolder="", missed=()):
    writer.begin(subfolder)
    for record in dataset.records:
        boxes = [] if record["image_id"] in missed else [(30, 20, 90, 50)]
        output = instances(*boxes, masks=True, scores=[0.9] * len(boxes))
        writer.process([{"image_id": record["image_id"]}], [output])
    writer.report()


def test_writer_draws_some_images_with_objects(dataset, tmp_path):
    write(ObjectWriter(dataset, str(tmp_path / "pictures"), Pictures(count=2)), dataset)
    written = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in written] == ["1.png", "5.png"]
    left, right = halves(Image.open(written[0]))
    # Below the labels, which differ by the score, an equal prediction looks like the truth.
    assert np.abs(left[84:] - right[84:]).max() == 0
    assert np.abs(left[84:] - 128).max() > 50


def test_each_evaluation_of_a_run_has_its_folder(dataset, tmp_path):
    writer = ObjectWriter(dataset, str(tmp_path / "pictures"), Pictures(count=1))
    write(writer, dataset, "iteration_0000009")
    write(writer, dataset)
    names = sorted(str(path.relative_to(tmp_path / "pictures")) for path in (tmp_path / "pictures").rglob("*.png"))
    assert names == ["1.png", "iteration_0000009/1.png"]


def test_the_images_with_the_most_errors_are_drawn_by_choice(dataset, tmp_path):
    # A detection in every image is false in those with an even id; of two equally bad ones the first is taken.
    writer = ObjectWriter(dataset, str(tmp_path / "pictures"), Pictures(count=3, worst=True))
    records = {record["image_id"]: record for record in dataset.records}
    records[7]["annotations"] = 3 * records[7]["annotations"]
    write(writer, dataset, missed=(0, 2, 4, 7))
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["01_7.png", "02_6.png", "03_8.png"]


def test_no_pictures_are_drawn_if_none_are_wanted(dataset, tmp_path):
    for worst in (False, True):
        write(ObjectWriter(dataset, str(tmp_path / "pictures"), Pictures(count=0, worst=worst)), dataset)
    assert not (tmp_path / "pictures").exists()


def test_a_long_caption_takes_another_line():
    one, two = (side_by_side([(caption, GREY)]).size for caption in ("short", "a caption that is wider than its picture"))
    assert one == (120, 60 + HEAD) and two[1] > one[1]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/a.png cannot be written"):
        save_picture(GREY, str(tmp_path / "file" / "a.png"))
