"""What is suspicious in annotation files and images."""

import json

import pytest
from PIL import Image

from resnest_det.data.annotation_files import InstanceFile, read_annotation_file
from resnest_det.data.coco import load_coco_instances
from resnest_det.data.health import Finding, check_annotations, check_image_headers, shared_images
from tests.helpers.datasets import write_coco


def square(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def found_in(tmp_path, *annotations, **lists):
    """(annotation id, what) of each finding in a file with one image of 100 x 80 pixels."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1} | each for n, each in enumerate(annotations, start=1)],
    } | lists
    path = tmp_path / "made.json"
    path.write_text(json.dumps(content))
    return [(each.annotation, each.what) for each in check_annotations(read_annotation_file(str(path), InstanceFile))]


def test_a_sound_file_has_no_findings(tmp_path):
    # Coordinates that are rounded, and a mask a little smaller than its box, are as labelling tools write them.
    sound = {"bbox": [10, 10, 30.5, 20], "segmentation": square(11, 10.4, 28, 19)}
    at_the_border = {"bbox": [80, 60, 20.7, 20.5], "segmentation": square(80, 60, 20.7, 20.5)}
    assert found_in(tmp_path, sound, at_the_border, {"bbox": [10, 10, 30, 20], "category_id": 2}) == []


@pytest.mark.parametrize(
    "annotation, what",
    [
        ({"bbox": [10, 10, 0, 5]}, "an empty box"),
        ({"bbox": [30, 30, -10, -10]}, "a flipped box, of negative width or height"),
        ({"bbox": [10, 10, float("nan"), 5]}, "a box that is not finite"),
        ({"bbox": [200, 10, 5, 5]}, "a box outside of its image"),
        ({"bbox": [95, 10, 20, 5]}, "a box that leaves its image"),
        ({"bbox": [10, 10, 5, 5], "image_id": 7}, "of an image that the file does not list"),
        ({"bbox": [10, 10, 5, 5], "category_id": 7}, "of a category that the file does not list"),
        ({"bbox": [10, 10, 50, 50], "segmentation": square(70, 60, 10, 10)}, "a mask that does not match its box"),
        ({"bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 30, 30]]}, "a mask none of whose polygons has three points"),
        ({"bbox": [10, 10, 20, 20], "segmentation": {"size": [80, 90], "counts": [7200]}}, "a mask that cannot be read"),
        ({"bbox": [10, 10, 20, 20], "segmentation": {"size": [80, 100], "counts": [8000]}}, "an empty mask"),
    ],
)
def test_each_fault_is_told_with_the_id_of_its_annotation(tmp_path, annotation, what):
    assert found_in(tmp_path, {"bbox": [10, 40, 20, 20]}, annotation) == [(2, what)]


def test_nearly_equal_boxes_of_a_class_and_repeated_ids_are_told_of_both(tmp_path):
    twice = found_in(tmp_path, {"bbox": [10, 10, 40, 20]}, {"bbox": [10, 10, 40, 20.2]})
    assert twice == [(1, "nearly the same box as another of its class"), (2, "nearly the same box as another of its class")]
    assert (
        found_in(tmp_path, {"bbox": [10, 10, 40, 20]}, {"bbox": [60, 40, 20, 20], "id": 1})
        == [(1, "an id that another annotation has, too")] * 2
    )
    categories = [{"id": 1, "name": "Cat"}, {"id": 2, "name": "cat "}]
    expected = [(None, "categories whose names differ in case, Unicode form or spaces at most")]
    assert found_in(tmp_path, categories=categories) == expected


def test_images_that_are_damaged_or_of_another_size_are_told(tmp_path):
    dataset = load_coco_instances("made", *write_coco(tmp_path, [(1, 20, 30), (2, 20, 30), (3, 20, 30)], []))
    Image.new("RGB", (20, 30)).save(tmp_path / "made" / "2.png")
    (tmp_path / "made" / "3.png").write_bytes(b"no image")
    size, unreadable = check_image_headers(dataset.records)
    assert (size.file, size.detail) == (str(tmp_path / "made" / "2.png"), "20 x 30, not 30 x 20")
    assert unreadable.what == "an image that cannot be read" and "3.png" in unreadable.detail


def test_images_in_both_splits_are_told_under_another_name_too(tmp_path):
    train = load_coco_instances("train", *write_coco(tmp_path, [(1, 20, 30), (2, 20, 31)], [], name="train"))
    val = load_coco_instances("val", *write_coco(tmp_path, [(3, 20, 30), (4, 20, 31)], [], name="val"))
    assert shared_images(train.records, val.records) == []
    (tmp_path / "val" / "4.png").write_bytes((tmp_path / "train" / "2.png").read_bytes())
    copy = Finding("an image in both datasets", str(tmp_path / "val/4.png"), None, f"the content of {tmp_path / 'train/2.png'}")
    assert shared_images(train.records, val.records) == [copy]
    same = shared_images(train.records, [*val.records, train.records[0]])
    assert [(each.file, each.detail) for each in same][0] == (train.records[0]["file_name"], "the same file")
