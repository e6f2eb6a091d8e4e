"""COCO exports, LabelMe, CVAT, Label Studio, masks and CSV: their layouts, and the faults of each."""

import base64
import io
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from resnest_det.data.formats.masks import connected
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.splits import find_labels
from resnest_det.errors import UserError
from tests.helpers.labels import SIZE, boxes, write_coco_export, write_images


def read(path, **settings):
    return read_labels(find_labels(str(path), **settings))


def notes(labels):
    return "\n".join(labels.notes)


def areas(labels):
    return [int(mask_util.area(mask_of(each.segmentation))) for each in labels.content.annotations]


def mask_of(run_lengths):
    return {"size": run_lengths.size, "counts": run_lengths.counts.encode()}


def test_a_coco_export_without_faults_is_as_it_was(tmp_path):
    write_coco_export(tmp_path)
    labels = read(tmp_path)
    assert labels.files.kind == "coco" and notes(labels) == ""
    assert [category.id for category in labels.content.categories] == [0, 1]
    assert boxes(labels) == [("a.jpg", "cat", 5, 5, 20, 10), ("b.jpg", "dog", 1, 2, 30, 20)]


def images_named(*names):
    return [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/3/a.jpg",
        "/data/upload/3/1f3870be-a.jpg",
        "/data/local-files/?d=photos/a.jpg",
        "http://localhost:8080/data/upload/3/a.jpg",
        "../../label-studio/data/media/upload/3/a.jpg",
        r"C:\\Users\\me\\label-studio\\upload\\3\\a.jpg",
        "/Users/me/photos/a.JPG",
    ],
)
def test_paths_in_coco_exports_of_label_studio(tmp_path, name):
    write_coco_export(tmp_path, images=images_named(name, "images/b.jpg"))
    labels = read(tmp_path / "result.json")
    assert [image.file_name for image in labels.content.images] == ["a.jpg", "b.jpg"]
    assert notes(labels).startswith("mended 1 names of images, found under another path, suffix or spelling (image 0, ")


def test_what_else_is_mended_in_coco_exports(tmp_path):
    annotations = [
        {"id": 3, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 10]},
        {"id": 3, "image_id": 0, "category_id": 2, "segmentation": [5, 5, 25, 5, 25, 15]},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [1, 2, 30, 20]},
        {"id": 5, "image_id": 0, "category_id": 3, "bbox": [1, 2, 30, 20]},
    ]
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
        {"id": i, "name": name, "supercategory": "pets"} for i, name in ((1, "cat"), (2, "dog"), (3, "cat"))
    ]
    images = images_named("a.jpg", "b.jpg", "images/a.jpg")
    images[1].update(height=None, width=0)
    write_coco_export(tmp_path, images=images, categories=categories, annotations=annotations)
    labels = read(tmp_path)
    assert boxes(labels) == [("a.jpg", "cat", 1, 2, 30, 20), ("a.jpg", "cat", 5, 5, 20, 10), ("a.jpg", "dog", 5, 5, 20, 10)]
    assert len(labels.content.images) == 2 and labels.content.images[1].width == SIZE[1]
    assert len({each.id for each in labels.content.annotations}) == 3
    assert [line.partition(" (")[0] for line in labels.notes] == [
        "mended 1 sizes of images, absent in the labels",
        "mended 1 polygons that are no list of polygons",
        "mended 1 boxes, absent beside a polygon",
        "left out 1 classes that are the supercategory of the others and have no object",
        "mended 1 classes that are listed twice, taken for one",
        "mended 1 images that are listed twice, taken for one",
        "left out 1 objects that their image has twice",
        "mended 1 ids of annotations that occur twice, all counted anew",
    ]


def test_images_of_a_coco_export_that_are_absent(tmp_path):
    write_coco_export(tmp_path)
    (tmp_path / "images" / "b.jpg").unlink()
    labels = read(tmp_path)
    assert boxes(labels) == [("a.jpg", "cat", 5, 5, 20, 10)]
    assert notes(labels) == "left out 1 labels of images that are absent (image 1, b.jpg)"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 0, "bbox": [1, 2, "x", 4]}]},
            "annotation 1: bbox must be four",
        ),
        ({"categories": [{"id": 0}]}, 'category 0: the key "name" is missing'),
        ({"images": [{"id": 0, "file_name": "a.jpg", "height": "tall", "width": 3}]}, "image 0: height must be"),
        ({"images": {}}, 'no list "images"'),
    ],
)
def test_faults_of_coco_that_are_refused_name_the_entry(tmp_path, changes, message):
    path = write_coco_export(tmp_path, **changes)
    with pytest.raises(UserError, match=f"result.json: {message}"):
        read(path, kind="coco")


def shape(kind, *points, label="cat", **more):
    return {"label": label, "points": list(points), "shape_type": kind, "group_id": None, "flags": {}, **more}


def labelme(folder, *shapes, name="a.jpg", **changes):
    write_images(folder, [name])
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": name, "imageData": None}
    content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | changes
    (folder / f"{name.rpartition('.')[0]}.json").write_text(json.dumps(content), encoding="utf-8")


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme(tmp_path):
    mask = np.zeros((5, 7), dtype=np.uint8)
    mask[1:4, 2:6] = 1
    labelme(
        tmp_path,
        shape("rectangle", [30, 20], [10, 5]),
        shape("polygon", [1, 1], [9, 1], [9, 9], group_id=3),
        shape("polygon", [20, 20], [29, 20], [29, 29], group_id=3),
        shape("circle", [30, 20], [40, 20], label="dog"),
        shape("mask", [3, 4], [9, 8], label="dog", mask=png(mask)),
        shape("point", [3, 4]),
        shape("polygon", [1, 1], [5, 5]),
        name="größe 1.jpg",
    )
    labels = read(tmp_path)
    assert labels.files.kind == "labelme"
    assert [each[1:] for each in boxes(labels)] == [
        ("cat", 1, 1, 28, 28),
        ("cat", 10, 5, 20, 15),
        ("dog", 5, 5, 4, 3),
        ("dog", 20, 10, 20, 20),
    ]
    pieces = next(each.segmentation for each in labels.content.annotations if each.bbox[0] == 1)
    assert pieces == [[1, 1, 9, 1, 9, 9], [20, 20, 29, 20, 29, 29]]
    assert notes(labels).splitlines() == [
        "left out 1 shapes of type point, which are no areas (größe 1.json, shape 6)",
        "left out 1 polygons of fewer than three points (größe 1.json, shape 7)",
    ]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (shape("rectangle", [3, 4]), "shape 1: a rectangle of 1 points"),
        (shape("circle", [3, 4]), "shape 1: a circle of 1 points"),
        (shape("polygon", [3, "x"], [3, 4], [4, 5]), "not a LabelMe file: .*shapes"),
        (shape("polygon", [3, 1e12], [3, 4], [4, 5]), "shape 1: a coordinate is not a finite number"),
        (shape("polygon", [3, 4], [9, 4], [9, 9], label=""), "shape 1: an object without the name"),
        (shape("mask", [3, 4], [9, 9], mask="AAAA"), "shape 1: its mask is no PNG"),
        (shape("mask", [300, 4], [9, 999], mask=png(np.ones((3, 3), np.uint8))), "shape 1: "),
        (shape("mask", [3, 4], [9, 9], mask=png(np.ones((300, 300), np.uint8))), "shape 1: a mask of 300 x 300 pixels, larger"),
    ],
)
def test_faults_of_labelme_name_the_shape(tmp_path, wrong, message):
    labelme(tmp_path, wrong)
    if "300, 4" in str(wrong["points"]):
        wrong["points"] = [[300, 4]]
        labelme(tmp_path, wrong)
    with pytest.raises(UserError, match=f"a.json.*{message}"):
        read(tmp_path)


def cvat(body, labels="<label><name>cat</name></label><label><name>dog</name></label>"):
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return f"<?xml version='1.0' encoding='utf-8'?>\n<annotations><version>1.1</version>{meta}\n{body}</annotations>"


IMAGE = f'<image id="0" name="a.jpg" width="{SIZE[1]}" height="{SIZE[0]}">'


def test_cvat_for_images(tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    body = IMAGE + (
        '<box label="dog" occluded="0" xtl="10" ytl="5" xbr="30" ybr="25" z_order="0"></box>'
        '<box label="cat" xtl="20" ytl="10" xbr="40" ybr="20" rotation="90"></box>'
        '<polygon label="cat" points="1,1;9.5,1;9,9"></polygon>'
        '<mask label="cat" rle="2, 3, 1, 4, 2" left="4" top="6" width="4" height="3"></mask>'
        '<ellipse label="dog" cx="30" cy="20" rx="10" ry="5"></ellipse>'
        '<polyline label="cat" points="1,1;2,2"></polyline></image>\n'
        '<image id="1" name="absent.jpg" width="3" height="3"/>'
    )
    (tmp_path / "annotations.xml").write_text(cvat(body))
    labels = read(tmp_path)
    assert labels.files.kind == "cvat"
    assert [each[1:] for each in boxes(labels)] == [
        ("cat", 1, 1, 8.5, 8),
        ("cat", 4, 6, 4, 3),
        ("cat", 25, 5, 10, 20),
        ("dog", 10, 5, 20, 20),
        ("dog", 20, 15, 20, 10),
    ]
    mask = mask_util.decode(mask_of(labels.content.annotations[3].segmentation))[6:9, 4:8]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0]]
    assert "left out 1 shapes of type polyline" in notes(labels) and "left out 1 labels of images that are absent" in notes(
        labels
    )


def test_cvat_for_video(tmp_path):
    write_images(tmp_path, ["frame_000000.PNG", "frame_000001.PNG"])
    track = "".join(
        f'<box frame="{frame}" outside="{outside}" keyframe="1" xtl="{frame + 1}" ytl="2" xbr="9" ybr="9"/>'
        for frame, outside in ((0, 0), (1, 0), (1, 1))
    )
    (tmp_path / "annotations.xml").write_text(cvat(f'<track id="0" label="cat">{track}</track>'))
    assert boxes(read(tmp_path)) == [("frame_000000.PNG", "cat", 1, 2, 8, 7), ("frame_000001.PNG", "cat", 2, 2, 7, 7)]


@pytest.mark.parametrize(
    "body, message",
    [
        (IMAGE + '<box label="cat" xtl="1" ytl="2" xbr="3"/></image>', "line 3: a <box> without ybr"),
        (IMAGE + '<box label="cow" xtl="1" ytl="2" xbr="3" ybr="4"/></image>', "line 3: class 'cow' is not among the 2 listed"),
        (IMAGE + '<polygon label="cat" points="1,2;3"/></image>', "line 3: points must be x,y;x,y"),
        (
            IMAGE + '<mask label="cat" rle="1,2" left="0" top="0" width="2" height="2"/></image>',
            "line 3: rle sums to 3, but its box",
        ),
        (
            IMAGE + '<mask label="cat" rle="1" left="59" top="0" width="2" height="2"/></image>',
            "line 3: a mask of 2 x 2 pixels at 59",
        ),
        ('<track label="cat"><box xtl="1"/></track>', "line 3: a <box> without frame"),
    ],
)
def test_faults_of_cvat_name_the_line(tmp_path, body, message):
    write_images(tmp_path, ["a.jpg"])
    (tmp_path / "annotations.xml").write_text(cvat(body))
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def region(kind, name="cat", **value):
    sides = {"original_height": SIZE[0], "original_width": SIZE[1]}
    return {"type": kind, "value": value | {kind: [name]}, **sides, "from_name": "label", "to_name": "image"}


def task(*regions, image="/data/upload/1/0a1b2c3d-a.jpg", **more):
    return {"id": 7, "data": {"image": image}, "annotations": [{"result": [*regions]}], **more}


def write_tasks(folder, *tasks):
    write_images(folder, ["a.jpg"])
    (folder / "export.json").write_text(json.dumps(tasks))


def test_label_studio(tmp_path):
    write_tasks(
        tmp_path,
        task(
            region("rectanglelabels", x=10, y=25, width=50, height=50, rotation=0),
            region("rectanglelabels", x=50, y=50, width=20, height=10, rotation=90),
            region("polygonlabels", "dog", points=[[10, 10], [50, 10], [50, 50]]),
            region("ellipselabels", "dog", x=50, y=50, radiusX=10, radiusY=20),
            region("keypointlabels", x=5, y=5, width=1),
            {"type": "choices", "value": {"choices": ["good"]}},
        ),
    )
    labels = read(tmp_path)
    assert labels.files.kind == "label-studio"
    assert [each[1:] for each in boxes(labels)] == [
        ("cat", 6, 10, 30, 20),
        ("cat", 26, 20, 4, 12),
        ("dog", 6, 4, 24, 16),
        ("dog", 24, 12, 12, 16),
    ]
    assert "rotated boxes" in notes(labels) and "left out 1 regions without a class (task 7, region 5)" in notes(labels)


def brush(mask):
    """Label Studio's bytes of a mask (H, W): one run for each pixel, of which the last of four values is its opacity."""
    values = np.repeat(mask.reshape(-1, 1) * 255, 4, axis=1).reshape(-1)
    bits = f"{values.size:032b}" + f"{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    for start in range(0, values.size, 4):
        bits += "1" + f"{0:02b}" + f"{3:03b}" + f"{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_label_studio_brush(tmp_path):
    mask = np.zeros(SIZE, dtype=np.int64)
    mask[5:9, 10:30] = 1
    write_tasks(tmp_path, task(region("brushlabels", format="rle", rle=brush(mask))))
    labels = read(tmp_path)
    assert boxes(labels) == [("a.jpg", "cat", 10, 5, 20, 4)] and areas(labels) == [80]


def test_label_studio_of_several_people_and_none(tmp_path):
    one, two = (region("rectanglelabels", name, x=10, y=25, width=50, height=50) for name in ("cat", "dog"))
    several = task(one) | {"annotations": [{"result": [one]}, {"result": [two]}, {"result": [one], "was_cancelled": True}]}
    write_tasks(tmp_path, several, task(image="b.jpg") | {"annotations": []})
    write_images(tmp_path, ["b.jpg"])
    labels = read(tmp_path)
    assert [each[1] for each in boxes(labels)] == ["dog"] and len(labels.content.images) == 2
    assert "1 images that several people annotated, of whom the last is taken (task 7)" in notes(labels)


def test_label_studio_json_min(tmp_path):
    value = region("rectanglelabels", x=10, y=25, width=50, height=50)["value"]
    value |= {"original_height": SIZE[0], "original_width": SIZE[1]}
    write_tasks(tmp_path, {"image": "/data/upload/1/a.jpg", "id": 1, "label": [value], "annotator": 1, "annotation_id": 5})
    assert boxes(read(tmp_path)) == [("a.jpg", "cat", 6, 10, 30, 20)]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (region("rectanglelabels", x="left", y=1, width=3, height=4), "task 7: region 1: x must be a finite number, not 'left'"),
        (region("polygonlabels", points=[[1, 2], [3]]), "task 7: region 1: points must be pairs"),
        (region("brushlabels", rle=[0, 1, 2]), "task 7: region 1: rle ends too early"),
        (region("brushlabels", rle=[0] * 40), "task 7: region 1: rle has 0 values"),
        (region("brushlabels", rle=["x"]), "task 7: region 1: rle must be a list of bytes"),
    ],
)
def test_faults_of_label_studio_name_the_region(tmp_path, wrong, message):
    write_tasks(tmp_path, task(wrong))
    with pytest.raises(UserError, match=f"export.json: {message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,60,40,cat,10,5,30,25\na.jpg,60,40,dog,0,0,6,4\n",
        "a.jpg,10,5,30,25,cat\na.jpg,0,0,6,4,dog\nb.jpg,,,,,\n",
        "Image_Path;x".replace(";", ",") + ",y,w,h,Label\nphotos/a.jpg,10,5,20,20,cat\nphotos/a.jpg,0,0,6,4,dog\n",
        "image,label,x1,y1,x2,y2\na.jpg,cat,0.16666667,0.125,0.5,0.625\na.jpg,dog,0,0,0.1,0.1\n",
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
        "cat,10,5,20,20,a.jpg,60,40\ndog,0,0,6,4,a.jpg,60,40\n",
    ],
)
def test_csv(tmp_path, text):
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "boxes.csv").write_text(text)
    labels = read(tmp_path)
    assert labels.files.kind == "csv"
    assert boxes(labels) == [("a.jpg", "cat", 10, 5, 20, 20), ("a.jpg", "dog", 0, 0, 6, 4)]
    assert len(labels.content.images) == (2 if "b.jpg" in text else 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,label,x1,y1,x2,y2\na.jpg,cat,1,2,x,4\n", "line 2: x1 must be a finite number, not 'x'"),
        ("image,label,x1,y1,x2,y2\n\na.jpg,cat,1,2\n", "line 3: 4 columns, fewer than"),
        ("image,label,x1,y1,x2\na.jpg,cat,1,2,3\n", "its first line must name columns"),
        ('image,label,x1,y1,x2,y2\n"a.jpg,cat,1,2,3,4\n', "line 3: unexpected end of data"),
        ("", "its first line must name"),
    ],
)
def test_faults_of_csv_name_the_line(tmp_path, text, message):
    write_images(tmp_path, ["a.jpg"])
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(UserError, match=f"boxes.csv: {message}"):
        read(tmp_path / "boxes.csv", kind="csv")


def write_masks(folder, values, name="a", **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(folder / f"{name}.png", **options)


def blobs():
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[2:6, 3:9], mask[10:20, 30:50], mask[30:33, 3:5] = 1, 2, 1
    return mask


def test_masks_of_objects(tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    write_masks(tmp_path / "masks", blobs(), "a_mask")
    labels = read(tmp_path)
    assert labels.files.kind == "masks"
    assert boxes(labels) == [("a.jpg", "object", 3, 2, 6, 31), ("a.jpg", "object", 30, 10, 20, 10)]
    assert areas(labels) == [30, 200]


def test_masks_of_classes_and_of_one_value(tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    write_masks(tmp_path / "masks", blobs())
    (tmp_path / "masks" / "classes.txt").write_text("background\ncat\ndog\n")
    assert [each[1:] for each in boxes(read(tmp_path))] == [("cat", 3, 2, 6, 4), ("cat", 3, 30, 2, 3), ("dog", 30, 10, 20, 10)]
    (tmp_path / "masks" / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match="a.png: color 2 is none of the 1 classes"):
        read(tmp_path)
    (tmp_path / "masks" / "classes.txt").unlink()
    write_masks(tmp_path / "masks", (blobs() > 0) * 255)
    assert len(boxes(read(tmp_path))) == 3


def test_masks_of_objects_and_classes_as_cvat_has_them(tmp_path):
    write_images(tmp_path / "JPEGImages", ["a.jpg"])
    colors = np.zeros((*SIZE, 3), dtype=np.uint8)
    colors[blobs() > 0] = (0, 128, 0)
    objects = np.zeros((*SIZE, 3), dtype=np.uint8)
    objects[blobs() == 1], objects[blobs() == 2], objects[0, 0] = (128, 0, 0), (0, 0, 128), (224, 224, 192)
    write_masks(tmp_path / "SegmentationClass", colors)
    write_masks(tmp_path / "SegmentationObject", objects)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:0,128,0::\n")
    assert boxes(read(tmp_path)) == [("a.jpg", "cat", 3, 2, 6, 31), ("a.jpg", "cat", 30, 10, 20, 10)]


def test_masks_of_another_size_are_refused(tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    write_masks(tmp_path / "masks", np.ones((3, 4)))
    with pytest.raises(UserError, match="a.png: 4 x 3 pixels .* has 60 x 40"):
        read(tmp_path)


@pytest.mark.parametrize("corners", [True, False])
def test_connected_parts(corners):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((12, 15)) < 0.45
        parts = connected(mask, corners=corners)
        assert (np.sum(parts, axis=0) == mask).all()
        assert len(parts) == flooded(mask, corners)


def flooded(mask, corners):
    """How many parts there are, by filling one after the other."""
    left, count = {tuple(map(int, at)) for at in np.argwhere(mask)}, 0
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if corners or abs(y) + abs(x) == 1]
    while left:
        border, count = [left.pop()], count + 1
        while border:
            y, x = border.pop()
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            border += near
    return count
