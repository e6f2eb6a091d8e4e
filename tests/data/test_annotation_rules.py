"""The rules of docs/data.md: what an annotation file may look like, one way of reading for training and for evaluation."""

import gzip
import json
import pickle

import numpy as np
import pytest

from resnest_det.data.coco import load_coco_instances
from resnest_det.data.panoptic import load_coco_panoptic
from resnest_det.errors import UserError
from resnest_det.evaluation.ground_truth import ground_truth_of_instances

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
OBJECT = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, "segmentation": SQUARE}
HUGE = 10**400


def content_with(annotation=(), image=(), category=()):
    """One image of 10 x 20 (height x width) with one object; values of the arguments take the place of these."""
    return {
        "images": [{"id": 7, "height": 10, "width": 20, "file_name": "7.png"} | dict(image)],
        "annotations": [OBJECT | dict(annotation)],
        "categories": [{"id": 3, "name": "cat"} | dict(category)],
    }


@pytest.fixture
def read(tmp_path):
    """read(content) -> Dataset with its truth; `content` is dumped as JSON unless it is bytes."""

    def read(content, keep_truth=True):
        path = tmp_path / "made.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return load_coco_instances("made", path, tmp_path, keep_truth=keep_truth)

    return read


def plain(dataset):
    return dataset.records[0] | {"truth": ground_truth_of_instances(dataset)}


@pytest.mark.parametrize(
    "change",
    [
        {"annotation": {"iscrowd": "0", "area": "16", "ignore": "0", "id": "1"}},
        {"annotation": {"iscrowd": 0.0, "area": 16.0, "id": 1.0, "image_id": "7", "category_id": "3"}},
        {"annotation": {"iscrowd": False, "ignore": False, "image_id": 7.0, "category_id": 3.0}},
        {"annotation": {"iscrowd": None, "ignore": None, "area": None}},
        {"annotation": {"bbox": ["1", "1.0", 4.0, "4"], "segmentation": [["1", "1", 5, 1.0, "5.0", 5, 1, "5"]]}},
        {"annotation": {"score": float("nan"), "attributes": {"a": [None]}}},
        {"image": {"id": "7", "height": 10.0, "width": "20", "license": None}},
        {"category": {"id": "3", "supercategory": None}},
    ],
)
def test_numbers_as_text_whole_floats_and_null(read, change):
    assert plain(read(content_with(**change))) == plain(read(content_with()))


@pytest.mark.parametrize("value, crowd", [("1", 1), (True, 1), (1.0, 1), ("0", 0), (False, 0), (None, 0)])
def test_a_crowd_is_one_to_training_and_evaluation(read, value, crowd):
    made = plain(read(content_with({"iscrowd": value})))
    assert made["annotations"][0]["iscrowd"] == made["truth"]["annotations"][0]["iscrowd"] == crowd


@pytest.mark.parametrize(
    "field, value",
    [
        ("iscrowd", "no"), ("iscrowd", 2), ("iscrowd", [0]), ("iscrowd", {}), ("iscrowd", float("nan")), ("iscrowd", -1),
        ("area", [16]), ("area", True), ("area", "big"), ("area", -1), ("area", float("nan")), ("area", HUGE), ("area", 1e11),
        ("ignore", "yes"), ("ignore", [1]), ("ignore", 1), ("ignore", True),
        ("bbox", [1, 1, 4, float("inf")]), ("bbox", [1, 1, 4, HUGE]), ("bbox", [1, 1, 4, None]), ("bbox", {"x": 1}),
        ("bbox", [1, 1, 4]), ("bbox", "1 1 4 4"), ("bbox", [[1, 1], [4, 4]]), ("bbox", [1, 1, 4, True]),
        ("category_id", "cat"), ("category_id", [3]), ("category_id", 2.5),
        ("segmentation", [[1, 1, 5, 1, float("nan"), 5]]), ("segmentation", [[1, 1, 5, 1, float("inf"), 5]]),
        ("segmentation", [[1, 1, 5, 1, HUGE, 5]]),
        ("segmentation", [[1, 1, 5, 1, 5, None]]),
        ("segmentation", [[1, 1, 5, 5, 5, "b"]]),
        ("segmentation", [[[1, 1], [5, 1], [5, 5]]]), ("segmentation", [1, 1, 5, 1, 5, 5]), ("segmentation", True),
    ],
)  # fmt: skip
def test_whatever_else_is_refused_by_file_annotation_and_field(read, field, value):
    with pytest.raises(UserError) as error:
        read(content_with({field: value}))
    message = str(error.value)
    assert "made.json: annotation 1: " in message and field.removesuffix("_id") in message and len(message) < 400
    assert "\n" not in message


@pytest.mark.parametrize(
    "segmentation, expected",
    [
        ([[1, 1, 1e9, 1, 1e9, 5]], "span x 1 to 1e\\+09, y 1 to 5, which does not fit the image of 20 x 10 pixels.*clip them"),
        ([[12, 1, 60, 1, 60, 9, 12, 9]], "span x 12 to 60, .*does not fit"),
        ([[42, 2, 50, 2, 50, 8]], "span x 42 to 50, y 2 to 8, .*does not fit"),
        ([[0, 0, 60, 0, 60, 40]], "span x 0 to 60, y 0 to 40, .*does not fit"),
        ([[1, 1, 5, 1, 5, 5], [1, -500, 5, -500, 5, -400]], "y -500 to 5, .*does not fit"),
        ([[1, 1], [5, 1], [5, 5], [1, 5]], r"segmentation holds points \[\[x0, y0\]"),
        ([[0.0, 0.0, 20.0, 10.0] * 150_000], "its polygons are .*pixels long"),
    ],
)
def test_polygons_that_cannot_be_of_the_image_are_refused(read, segmentation, expected):
    with pytest.raises(UserError, match=f"made.json: annotation 1: .*{expected}"):
        read(content_with({"segmentation": segmentation}))


def test_polygons_may_overshoot_somewhat_and_have_a_million_points(read):
    angle = np.linspace(0, 2 * np.pi, 1_000_000, endpoint=False)
    fine = np.round(np.stack([10 + 9.5 * np.cos(angle), 5 + 6.5 * np.sin(angle)], axis=1), 4).reshape(-1).tolist()
    record = read(content_with({"segmentation": [fine]})).records[0]
    assert record["annotations"][0]["segmentation"] == [fine]


def test_endless_polygons_of_objects_outside_their_image_are_refused(read):
    """Training leaves them out, but evaluation would rasterise them."""
    outside = {"id": 2, "bbox": [30, 1, 4, 4]}
    content = content_with()
    content["annotations"].append(OBJECT | outside | {"segmentation": [[30, 1, 34, 1, 34, 5]]})
    dataset = read(content)
    assert len(dataset.records[0]["annotations"]) == 1 and len(dataset.truth.annotations) == 2
    for far in (1e9, float("nan")):
        content["annotations"][1]["segmentation"] = [[30, 1, far, 1, 34, 5]]
        with pytest.raises(UserError, match="annotation 2: .*(pixels long|finite)"):
            read(content)


def test_polygons_of_fewer_than_three_points_are_left_out_and_still_count(read, caplog):
    content = content_with({"segmentation": [[1, 1, 5, 5], *SQUARE, [1, 1, 2, 2, 3]]})
    content["annotations"].append(OBJECT | {"id": 2, "segmentation": [[1, 1, 4, 4]], "area": None})
    dataset = read(content)
    assert [(a["id"], a["segmentation"]) for a in dataset.records[0]["annotations"]] == [(1, SQUARE)]
    assert "left out 1 objects whose polygons have fewer than three points" in caplog.text
    first, second = ground_truth_of_instances(dataset)["annotations"]
    assert first["segmentation"] == SQUARE and second["bbox"] == [1, 1, 4, 4]
    assert second["segmentation"]["size"] == [10, 20] and second["area"] == 0


@pytest.mark.parametrize(
    "boxes, expected",
    [
        (
            [[6, 2, 18, 9], [10, 3, 19, 8], [1, 1, 4, 4]],
            "2 of 3 boxes .* leave their image, .*annotation 1.*corners x0, y0, x1, y1",
        ),
        ([[0.1, 0.1, 0.5, 0.5], [0.2, 0.1, 0.3, 0.9]], "2 of 2 boxes .* are of a pixel at most.*fractions"),
        ([[1, 1, 9, 18], [2, 3, 8, 16]], "2 of 2 boxes .* leave their image.*width and height of the images are exchanged"),
        ([[100, 50, 300, 200], [40, 20, 10, 100]], ".*leave their image.*another size"),
        ([[19, 9, 30, 30]], "1 of 1 boxes"),
    ],
)
def test_boxes_that_mean_something_else_are_refused(read, boxes, expected):
    content = content_with()
    content["annotations"] = [
        {key: value for key, value in (OBJECT | {"id": number, "bbox": box}).items() if key != "segmentation"}
        for number, box in enumerate(boxes, start=1)
    ]
    with pytest.raises(UserError, match=f"made.json: {expected}"):
        read(content)


def test_a_few_boxes_may_leave_their_image(read):
    content = content_with()
    content["annotations"] += [OBJECT | {"id": 2, "bbox": [15, 1, 30, 4]}, OBJECT | {"id": 3}]
    assert len(read(content).records[0]["annotations"]) == 3


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"image": {"height": 10.5}}, "image 7: height must be a positive integer up to 1000000, not 10.5"),
        ({"image": {"width": HUGE}}, "image 7: width must be a positive integer"),
        ({"image": {"width": 900_000, "height": 900_000}}, "image 7: 900000 x 900000 .*more pixels"),
        ({"image": {"height": None}}, 'image 7: the key "height" is missing'),
        ({"image": {"width": True}}, "image 7: width must be a positive integer .*, not True"),
        ({"image": {"file_name": ["7.png"]}}, r"image 7: file_name must be text, not \['7.png'\]"),
        ({"image": {"width": [20]}}, r"image 7: width must be a positive integer up to 1000000, not \[20\]"),
        ({"image": {"id": True}}, "image at position 0: id must be an integer, not True"),
        ({"annotation": {"id": None}}, 'annotation at position 0: the key "id" is missing'),
        ({"annotation": {"id": "1.5"}}, "annotation at position 0: id must be an integer, not '1.5'"),
        ({"annotation": {"id": " "}}, "annotation at position 0: id must be an integer, not ' '"),
        ({"annotation": {"id": "f81d", "bbox": [1]}}, r"annotation f81d: bbox must be four finite numbers"),
        ({"annotation": {"id": "f81d", "area": -1}}, r"annotation f81d: area must be a number"),
        ({"annotation": {"image_id": "f81d"}}, "annotation 1: image_id must be an integer, not 'f81d'"),
        ({"annotation": {"id": [1]}}, "annotation at position 0: id must be an integer"),
        ({"annotation": {"image_id": None}}, 'annotation 1: the key "image_id" is missing'),
        ({"category": {"name": None}}, "category 3: the name must be text, not None"),
        ({"category": {"id": 10.5}}, "category at position 0: id must be an integer"),
    ],
)
def test_faulty_images_and_ids_are_named(read, change, expected):
    with pytest.raises(UserError, match=f"made.json: {expected}"):
        read(content_with(**change))


@pytest.mark.parametrize("image_id", [2**53, 2**53 + 1, 2**64, -1, 0, HUGE])
def test_ids_of_any_size(read, image_id):
    dataset = read(content_with({"image_id": image_id, "id": -(2**80)}, {"id": image_id}))
    assert dataset.records[0]["image_id"] == image_id and len(dataset.records[0]["annotations"]) == 1


def test_digits_are_numbers_however_many_zeros_they_begin_with(read):
    content = content_with({"image_id": 7, "id": "0001"}, {"id": "000000000007"})
    assert plain(read(content)) == plain(read(content_with()))
    content = content_with({"image_id": "000000000007", "category_id": "03"})
    assert plain(read(content)) == plain(read(content_with()))


@pytest.mark.parametrize("polygon", [[5, 5, 5, 5, 5, 5], [2, 4, 9, 4, 12, 4], [3, 1, 3, 5, 3, 9]])
def test_polygons_may_be_as_thin_as_a_line(read, polygon):
    assert len(read(content_with({"segmentation": [polygon]})).records[0]["annotations"]) == 1


def test_ids_that_are_text_are_told_and_kept(read, caplog):
    caplog.set_level("INFO")
    content = content_with({"id": "f81d-2", "image_id": "b.png", "category_id": "cat"}, {"id": "b.png"}, {"id": "cat"})
    content["images"] += [content["images"][0] | {"id": "a.png"}, content["images"][0] | {"id": "7"}]
    content["annotations"] += [content["annotations"][0] | {"id": "f81d-1"}, OBJECT | {"id": "3", "category_id": "cat"}]
    dataset = read(content)
    assert [str(record["image_id"]) for record in dataset.records] == ["7", "a.png", "b.png"]
    assert [len(record["annotations"]) for record in dataset.records] == [1, 0, 2]
    assert "made.json: ids of annotations are text, such as 'f81d-1'" in caplog.text and "ids of images" in caplog.text
    again = pickle.loads(pickle.dumps(dataset.records))
    assert list(again) == list(dataset.records) and str(again[1]["image_id"]) == "a.png"
    content["annotations"][0]["id"] = "f81d-1"
    with pytest.raises(UserError, match="made.json: annotation id f81d-1 occurs more than once"):
        read(content)


@pytest.mark.parametrize("name, expected", [(1, "1"), (1.5, "1.5"), (-2, "-2"), (10**20, "1" + "0" * 20), ("1", "1"), (0, "0")])
def test_names_that_are_numbers_become_text(read, name, expected):
    assert read(content_with(category={"name": name})).metadata.thing_classes == [expected]


def test_names_that_occur_twice_are_refused(read):
    content = content_with()
    content["categories"].append({"id": 9, "name": "cat"})
    with pytest.raises(UserError, match="made.json: categories 3 and 9 are both named 'cat'"):
        read(content)
    content["categories"] = [{"id": 3, "name": 5}, {"id": 4, "name": "5"}]
    with pytest.raises(UserError, match="categories 3 and 4 are both named '5'"):
        read(content)


def test_a_file_listed_under_two_ids_is_told(read, caplog):
    content = content_with()
    content["images"].append(content["images"][0] | {"id": 8})
    assert len(read(content).records) == 2
    assert "lists 1 files under more than one image id" in caplog.text


TEXT = json.dumps(content_with())


@pytest.mark.parametrize(
    "raw",
    [
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        gzip.compress(TEXT.encode()),
        gzip.compress(TEXT.encode("utf-8-sig")),
        TEXT.replace(', "file_name"', ',\r\n\t"file_name"').encode(),
    ],
)
def test_byte_order_marks_and_gzip(read, raw):
    assert plain(read(raw)) == plain(read(content_with()))


@pytest.mark.parametrize(
    "raw, expected",
    [
        (gzip.compress(TEXT.encode())[:-20], "cannot be unpacked"),
        (b"\x1f\x8b rubbish", "cannot be unpacked"),
        (b"[" * 100_000, "lists within lists|malformed"),
        (TEXT.replace("16", "1" * 5000).encode(), "cannot be read: .*digits"),
        (TEXT.encode("latin-1").replace(b"cat", b"\xe9"), "not UTF-8"),
        (TEXT[:-5].encode(), "malformed JSON at line 1"),
        (b'{"images": {"7": {}}, "annotations": [], "categories": []}', 'no list "images"'),
    ],
)
def test_what_is_no_annotation_file_is_refused(read, raw, expected):
    with pytest.raises(UserError, match=f"made.json: .*({expected})"):
        read(raw)


def test_run_lengths_mean_to_everybody_what_they_mean_here(read):
    """Numbers that C would read otherwise are refused; runs of no pixel, at which its comparison of masks stops, are joined."""

    def segmentation(counts):
        return content_with({"segmentation": {"size": [10, 20], "counts": counts}})

    made = read(segmentation([5, 0, 0, 5, 10, 0, 180])).records[0]["annotations"][0]["segmentation"]
    assert made == read(segmentation([5, 5, 190])).records[0]["annotations"][0]["segmentation"]
    padded = "X" * 0 + "".join(chr(48 + code) for code in (8 | 32, 6 | 32, 32, 32, 32, 32, 32, 0))  # 200 in eight groups
    for counts in (
        padded,
        [2**64, 200 - 2**64],
        [HUGE, 0],
        [2**32, 200],
        [-(2**31), 2**31 + 200],
        [],
        [True, 199],
        ["a"],
        "é",
        200,
    ):
        with pytest.raises(
            UserError, match="annotation 1: .*counts must be a string of COCO's encoding or a list of whole numbers"
        ):
            read(segmentation(counts))
    for size in ([10.5, 20], [10], "10 20", [20, 10], [HUGE, 20]):
        with pytest.raises(UserError, match="annotation 1: "):
            read(content_with({"segmentation": {"size": size, "counts": [200]}}))


def test_a_file_that_lists_images_alone_is_there_to_be_predicted_only(read, caplog):
    content = content_with()
    del content["annotations"]
    dataset = read(content)
    assert dataset.truth.annotations is None and dataset.records[0]["annotations"] == []
    assert "lists images without annotations" in caplog.text
    with pytest.raises(UserError, match='no list "annotations"'):
        read(content, keep_truth=False)


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="no"),
            r"image 7: segments_info\[0\]: iscrowd must be 0 or 1",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=3),
            "image 7: segment 1: iscrowd must be 0 or 1, not 3",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=[1]), r"image 7: segments_info\[0\]: id must be an integer"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(area=-1), "image 7: segment 1: area must be"),
        (lambda c: c["annotations"][0]["segments_info"][0].pop("category_id"), 'segments_info: the key "category_id" is missing'),
        (lambda c: c["annotations"][0]["segments_info"].append(None), "image 7: segments_info must be a list of objects"),
        (lambda c: c["categories"].append({"id": 4, "name": "sky", "isthing": 0}), "categories 3 and 4 are both named 'sky'"),
        (lambda c: c["categories"][0].update(color=[1, 2]), "category 3: color must be three whole numbers"),
    ],
)
def test_panoptic_files_are_held_to_the_same_rules(tmp_path, change, expected):
    (tmp_path / "7.png").touch()
    content = content_with(category={"name": "sky", "isthing": "0"})
    segment = {"id": "1", "category_id": 3.0, "iscrowd": None, "area": "200"}
    content["annotations"] = [{"image_id": "7", "file_name": "7.png", "segments_info": [segment]}]
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    record = load_coco_panoptic("made", path, tmp_path, tmp_path).records[0]
    assert record["segments_info"] == [{"id": 1, "category_id": 1, "isthing": False, "iscrowd": 0}]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"panoptic.json: .*{expected}"):
        load_coco_panoptic("made", path, tmp_path, tmp_path)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer, .*`git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_what_people_have_in_the_place_of_annotations_is_named(tmp_path, content, said):
    path = tmp_path / "instances_train.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: {said}") as caught:
        load_coco_instances("mine", str(path), str(tmp_path))
    assert "\n" not in str(caught.value)
