"""Whatever is in a label file: labels, or one line that names the file."""

import base64
import io
import json
from collections import Counter
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resnest_det.data.coco import instances_dataset
from resnest_det.data.formats.labels import LabelFiles
from resnest_det.data.formats.reading import read_labels
from resnest_det.errors import UserError
from tests.helpers.labels import voc, write_images

FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

numbers = st.one_of(
    st.floats().map(str),
    st.floats(-0.5, 1.5).map(str),
    st.integers(-3, 70).map(str),
    st.sampled_from(["", " ", "nan", "-inf", "1e999", "0x10", "1_0", "١", "1,5", "\ud7ff", "--1", "+.5", "0" * 5000]),
)


def seldom(strange, usual, times):
    """`usual`, and once in so many times what is strange."""
    return st.integers(1, times).flatmap(lambda draw: strange if draw == 5 else usual)


text = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    write_images(path / "images", ["a.jpg", "b c.PNG"])
    return path


good: Counter = Counter()


def outcome(path, kind, folder, content):
    """It becomes a dataset that the strict rules take, which is counted, or an error of one line."""
    path.write_bytes(content)
    files = LabelFiles(str(path if kind != "yolo" else path.parent), kind, str(folder / "images"))
    try:
        labels = read_labels(files)
        for annotation in labels.content.annotations:
            x, y, width, height = annotation.bbox
            assert x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 60.001 and y + height <= 40.001
        assert all("\n" not in line for line in labels.notes)
        instances_dataset("fuzz", labels.content, str(path), labels.image_root, keep_truth=True)
        good[kind] += 1
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 4100
        assert path.name in str(error) or str(path.parent) in str(error), str(error)


lines = st.one_of(
    st.lists(numbers, max_size=12).map(" ".join),
    st.tuples(st.integers(0, 3), st.lists(st.floats(-0.2, 1.2), min_size=4, max_size=10)).map(
        lambda each: " ".join(map(str, (each[0], *each[1])))
    ),
    text,
)


@FEW
@given(st.lists(lines, max_size=6).map("\n".join))
def test_yolo(folder, content):
    (folder / "yolo").mkdir(exist_ok=True)
    (folder / "yolo" / "classes.txt").write_text("cat\ndog\ncow")
    outcome(folder / "yolo" / "a.txt", "yolo", folder, content.encode("utf-8", "surrogatepass"))


mostly = seldom(numbers, st.floats(0, 42).map(str), 12)
objects = st.tuples(seldom(text, st.just("cat"), 12), *[mostly] * 4)
files = st.builds(
    lambda found, name, size, database: voc(*found, filename=name, size=size, database=database),
    st.lists(objects, max_size=4),
    seldom(text, st.sampled_from(["a.jpg"]), 6)
    | st.sampled_from(["a.jpg", "b c.png", "/x/A.JPG", "a%2Ejpg", "C:\\b%20c.png", "http://[/a.jpg"]),
    st.none() | st.tuples(numbers, numbers) | st.just((40, 60)),
    text | st.just("The VOC2012"),
)


@FEW
@given(files, st.integers(0, 2000), st.binary(max_size=3), st.booleans())
def test_voc(folder, content, at, damage, damaged):
    raw = content.encode("utf-8", "surrogatepass")
    outcome(folder / "a.xml", "voc", folder, raw[:at] + damage + raw[at + 2 :] if damaged else raw)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70),
    st.floats(),
    text,
    st.sampled_from(["a.jpg", "polygon", "mask", "rectangle", "circle", 10**400]),
)
values = leaves | st.lists(leaves | st.lists(leaves, max_size=3), max_size=4) | st.dictionaries(text, leaves, max_size=3)


def changed(value):
    """The JSON value with parts of it changed."""
    if isinstance(value, dict):
        fixed = st.fixed_dictionaries({key: changed(each) for key, each in value.items()})
    elif isinstance(value, list):
        fixed = st.tuples(*map(changed, value)).map(list)
    else:
        fixed = st.just(value)
    return seldom(values, fixed, 30)


def png():
    """A mask of 5 x 5 pixels as LabelMe has it."""
    file = io.BytesIO()
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def brush():
    """A mask of the whole image as Label Studio has it: one run of 9600 values."""
    bits = f"{9600:032b}{7:05b}{15:04b}{15:04b}{15:04b}{15:04b}100{9599:016b}{255:08b}"
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


LABELME = {
    "imagePath": "a.jpg",
    "imageHeight": 40,
    "imageWidth": 60,
    "shapes": [
        {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon", "group_id": None},
        {"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 20], [25, 25]], "shape_type": "circle"},
        {"label": "dog", "points": [[20, 20], [25, 25]], "shape_type": "mask", "mask": png()},
    ],
}
SIDES = {"original_height": 40, "original_width": 60}
TASKS = [
    {
        "id": 1,
        "data": {"image": "/data/upload/1/a.jpg"},
        "annotations": [
            {
                "result": [
                    SIDES
                    | {
                        "id": "a",
                        "value": {"x": 1, "y": 2, "width": 30, "height": 20, "rotation": 3, "rectanglelabels": ["cat"]},
                    },
                    SIDES | {"id": "b", "value": {"points": [[1, 2], [30, 2], [30, 30]], "polygonlabels": ["dog"]}},
                    SIDES | {"id": "c", "value": {"rle": brush(), "brushlabels": ["dog"]}},
                ]
            }
        ],
    }
]
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}],
    "categories": [{"id": 0, "name": "cat", "supercategory": "pets"}, {"id": 1, "name": "dog", "supercategory": "pets"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": {"size": [40, 60], "counts": [2400]}},
    ],
}


@FEW
@given(changed(LABELME))
def test_labelme(folder, content):
    outcome(folder / "a.json", "labelme", folder, json.dumps(content).encode("utf-8", "surrogatepass"))


@FEW
@given(changed(TASKS))
def test_label_studio(folder, content):
    outcome(folder / "tasks.json", "label-studio", folder, json.dumps(content).encode("utf-8", "surrogatepass"))


@FEW
@given(changed(COCO))
def test_coco(folder, content):
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    try:
        labels = read_labels(LabelFiles(str(path), "coco", str(folder / "images")))
        instances_dataset("fuzz", labels.content, str(path), labels.image_root, keep_truth=True)
    except UserError as error:
        assert "\n" not in str(error) and "coco.json" in str(error)


garbage = st.lists(numbers | text | st.sampled_from(["a.jpg", "cat", '"']), max_size=9).map(",".join)
rows = seldom(garbage, st.tuples(st.just("a.jpg,cat"), *[mostly] * 4).map(",".join), 8)


@FEW
@given(st.lists(rows, max_size=5).map("\n".join), st.booleans())
def test_csv(folder, content, headed):
    head = "image,label,x1,y1,x2,y2\n" if headed else ""
    outcome(folder / "boxes.csv", "csv", folder, (head + content).encode("utf-8", "surrogatepass"))


NAMES = ["label", "xtl", "ytl", "xbr", "ybr", "rotation", "points", "rle", "left", "top", "width", "height", "cx", "rx"]
attributes = st.dictionaries(
    st.sampled_from(NAMES), mostly | st.integers(0, 40).map(str) | st.sampled_from(["cat", "1,2;3,4;5,9", "1,2,3"]), max_size=8
)
corners = st.fixed_dictionaries({"label": st.just("cat")} | dict.fromkeys(["xtl", "ytl", "xbr", "ybr"], mostly))
shapes = st.tuples(st.just("box"), corners) | st.tuples(st.sampled_from(["box", "polygon", "mask", "ellipse", "x"]), attributes)


@FEW
@given(st.lists(shapes, max_size=4))
def test_cvat(folder, found):
    body = "".join(f"<{tag} {' '.join(f'{key}={quoteattr(value)}' for key, value in each.items())}/>" for tag, each in found)
    content = f'<annotations><image name="a.jpg">{body}</image></annotations>'
    outcome(folder / "c.xml", "cvat", folder, content.encode("utf-8", "replace"))


def test_not_everything_was_refused():
    """After the tests above: files of each kind came through."""
    assert not good or min(good[kind] for kind in ("yolo", "voc", "labelme", "label-studio", "csv", "cvat")) >= 3, good
