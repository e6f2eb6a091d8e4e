"""COCO JSON to records: what is kept, what is dropped and counted, what is refused."""

import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_det.data.coco import load_coco_instances
from resnest_det.data.outlines import _run_lengths
from resnest_det.errors import UserError

TRIANGLE = [[1.0, 1.0, 9.0, 1.0, 5.0, 7.0]]


def encode(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()


def read(paths):
    return load_coco_instances("made", *paths)


def test_records_are_sorted_and_categories_contiguous_in_id_order(write_coco):
    annotations = [
        {"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 30, "segmentation": TRIANGLE},
        {"image_id": 3, "bbox": [0, 0, 5, 5], "category_id": 4, "iscrowd": 1},
    ]
    json_file, folder = write_coco([(7, 10, 20), (3, 12, 8), (5, 6, 6)], annotations, [(30, "zebra"), (4, "cat")])
    dataset = read((json_file, folder))
    assert [record["image_id"] for record in dataset.records] == [3, 5, 7]
    assert [len(record["annotations"]) for record in dataset.records] == [1, 0, 1]
    assert dataset.metadata.thing_classes == ["cat", "zebra"]
    assert dataset.metadata.thing_dataset_id_to_contiguous_id == {4: 0, 30: 1}
    assert dataset.records[2] == {
        "file_name": f"{folder}/7.png", "height": 10, "width": 20, "image_id": 7,
        "annotations": [{"id": 1, "bbox": [1, 2, 3, 4], "category_id": 1, "iscrowd": 0, "segmentation": TRIANGLE}],
    }  # fmt: skip
    assert dataset.records[0]["annotations"][0] == {"id": 2, "bbox": [0, 0, 5, 5], "category_id": 0, "iscrowd": 1}


def test_both_run_length_forms_mean_the_same_mask(write_coco):
    mask = np.zeros((6, 5), dtype=np.uint8)
    mask[2:5, 1:4] = 1
    compressed = mask_util.encode(np.asfortranarray(mask))
    # Columns first: 5 pixels of 0 in column 0 and 2 more, then 3 of 1, 3 of 0, ...
    counts = [8, 3, 3, 3, 3, 3, 7]
    annotations = [
        {"image_id": 1, "bbox": [1, 2, 3, 3], "segmentation": {"size": [6, 5], "counts": counts}},
        {"image_id": 1, "bbox": [1, 2, 3, 3], "segmentation": {"size": [6, 5], "counts": compressed["counts"].decode()}},
    ]
    records = read(write_coco([(1, 6, 5)], annotations)).records
    for annotation in records[0]["annotations"]:
        np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]), mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 9), st.integers(1, 20))
def test_compressed_run_lengths_are_understood(height, width, share, seed, scale):
    mask = np.random.default_rng(seed).random((height, width)) < share
    mask = np.kron(mask, np.ones((scale, scale), dtype=bool))
    changes = np.flatnonzero(np.diff(np.concatenate([[False], mask.reshape(-1, order="F")])))
    expected = np.diff(np.concatenate([[0], changes, [mask.size]]))
    np.testing.assert_array_equal(_run_lengths(encode(mask)), expected)


def test_useless_annotations_are_dropped_and_counted(write_coco, caplog):
    annotations = [
        {"image_id": 1, "bbox": [1, 1, 0, 4], "segmentation": TRIANGLE},
        {"image_id": 1, "bbox": [1, 1, 4, -1], "segmentation": TRIANGLE},
        {"image_id": 1, "bbox": [20, 1, 4, 4], "segmentation": TRIANGLE},
        {"image_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 4, 4]]},
        {"image_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 4, 4], *TRIANGLE, [1, 1, 2, 2, 3, 3, 4]]},
        {"image_id": 9, "bbox": [1, 1, 4, 4], "segmentation": TRIANGLE},
    ]
    with caplog.at_level(logging.WARNING):
        records = read(write_coco([(1, 10, 20)], annotations)).records
    assert [(a["id"], a["segmentation"]) for a in records[0]["annotations"]] == [(5, TRIANGLE)]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    for part in ("made.json", "3 boxes with no area", "1 objects whose polygons", "1 annotations of images that are not listed"):
        assert part in message


@pytest.mark.parametrize(
    "annotation, expected",
    [
        ({"category_id": 5}, ["annotation 1", "category id 5", "categories"]),
        ({"bbox": [1, 2, 3]}, ["annotation 1", "bbox", "[1, 2, 3]"]),
        ({"bbox": [1, 2, float("nan"), 3]}, ["annotation 1", "bbox", "nan"]),
        ({"segmentation": {"size": [20, 10], "counts": [200]}}, ["annotation 1", "[20, 10]", "image 1", "[10, 20]"]),
        ({"segmentation": {"size": [10, 20], "counts": [150, 49]}}, ["annotation 1", "199", "10 x 20"]),
        ({"segmentation": {"size": [10, 20], "counts": [250, -50]}}, ["annotation 1", "whole numbers"]),
        ({"segmentation": {"size": [10, 20], "counts": [1.5, 198.5]}}, ["annotation 1", "whole numbers"]),
        ({"segmentation": {"size": [10, 20], "counts": "no spaces"}}, ["annotation 1", "COCO's encoding"]),
        ({"segmentation": {"size": [10, 20], "counts": ""}}, ["annotation 1", "COCO's encoding"]),
        ({"segmentation": {"size": [10, 20], "counts": encode(np.eye(10))}}, ["annotation 1", "sum to 100", "10 x 20"]),
        ({"segmentation": {"size": [10, 20]}}, ["annotation 1", '"counts" is missing']),
        ({"segmentation": [1, 1, 5, 5, 2, 6]}, ["annotation 1", "list of polygons"]),
        ({"segmentation": "mask.png"}, ["annotation 1", "str"]),
        ({"ignore": 1}, ["annotation 1", "ignore"]),
    ],
)
def test_faulty_annotations_are_named(write_coco, annotation, expected):
    paths = write_coco([(1, 10, 20)], [{"image_id": 1, "bbox": [1, 1, 4, 4]} | annotation])
    with pytest.raises(UserError) as error:
        read(paths)
    for part in (paths[0], *expected):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, entry, expected",
    [
        ("images", {"id": 1, "height": 4, "width": 4, "file_name": "again.png"}, "image id 1 occurs more than once"),
        ("annotations", {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}, "annotation id 1 occurs more"),
        ("categories", {"id": 1, "name": "again"}, "category id 1 occurs more than once"),
        ("images", {"id": 2, "width": 4, "file_name": "b.png"}, 'image 2: the key "height" is missing'),
        ("images", {"id": 2, "height": 0, "width": 4, "file_name": "b.png"}, "image 2: height must be a positive integer"),
        ("images", {"height": 4, "width": 4, "file_name": "b.png"}, 'image at position 1: the key "id" is missing'),
        ("images", {"id": "2.5", "height": 4, "width": 4, "file_name": "b.png"}, "id must be an integer, not '2.5'"),
        ("annotations", {"id": 2, "category_id": 1, "bbox": [0, 0, 1, 1]}, 'annotation 2: the key "image_id" is missing'),
        ("annotations", {"id": 2, "image_id": 1, "bbox": [0, 0, 1, 1]}, 'annotation 2: the key "category_id" is missing'),
        ("annotations", {"id": 2, "image_id": 1, "category_id": 1}, 'annotation 2: the key "bbox" is missing'),
        ("annotations", [], "annotation at position 1: not an object"),
        ("annotations", None, "annotation at position 1: not an object"),
        ("images", None, "image at position 1: not an object"),
        ("categories", {"id": 2}, 'category 2: the key "name" is missing'),
    ],
)
def test_faulty_lists_are_named(write_coco, key, entry, expected):
    json_file, folder = write_coco([(1, 4, 4)], [{"image_id": 1, "bbox": [0, 0, 2, 2]}], [(1, "cat")])
    with open(json_file) as file:
        content = json.load(file)
    content[key].append(entry)
    with open(json_file, "w") as file:
        json.dump(content, file)
    with pytest.raises(UserError, match=expected):
        read((json_file, folder))


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"images": [],\n "annotations": [}', "line 2, column 18"),
        ("", "line 1, column 1"),
        ("[1, 2]", "holds a list"),
        ('{"images": [], "categories": []}', 'no list "annotations"'),
        ('{"images": [], "annotations": [], "categories": []}', '"categories" is empty'),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path, text, expected):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match="bad.json.*" + expected):
        read((path, tmp_path))


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="binary.json.*not UTF-8"):
        read((tmp_path / "binary.json", tmp_path))
    with pytest.raises(UserError, match="absent.json.*No such file"):
        read((tmp_path / "absent.json", tmp_path))


@pytest.mark.parametrize(
    "name, expected",
    [
        ({"__import__('os').system('touch x'), x": 1}, "must be text"),
        (None, "must be text"),
        (["x"], "must be text"),
        (True, "must be text"),
        (float("nan"), "must be text"),
        (" ", "must be text"),
        ("a\nb", r"'a\\nb' has a control character"),
        ("\x1b[2J", "control character"),
        ("\ud800", "control character"),
        ("a\u2028b", "control character"),
        ("\x00", "control character"),
    ],
)
def test_category_names_that_are_no_plain_text_are_refused(write_coco, name, expected):
    paths = write_coco([(1, 10, 10)], [], [(4, name)])
    with pytest.raises(UserError, match=f"category 4: .*{expected}") as error:
        read(paths)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name, expected", [("chat à l'eau", "chat à l'eau"), ("猫\u3000犬", "猫\u3000犬"), (1, "1")])
def test_category_names_of_any_language_and_whole_numbers(write_coco, name, expected):
    assert read(write_coco([(1, 10, 10)], [], [(4, name)])).metadata.thing_classes == [expected]
