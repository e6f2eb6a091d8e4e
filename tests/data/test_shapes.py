"""The generated dataset: ordinary COCO files, the same bytes every time, and truth that agrees with itself."""

import hashlib
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO

from resnest_det.data import shapes
from resnest_det.data.coco import load_coco_instances
from resnest_det.errors import UserError

SMALL = {"train": 12, "val": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "shapes"
    shapes.write_shapes(path, SMALL)
    return path


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_same_bytes_for_a_seed(folder, tmp_path):
    shapes.write_shapes(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(folder)
    assert len(digests(folder)) == 2 * (12 + 5) + 4
    shapes.write_shapes(tmp_path / "other", SMALL, seed=1)
    assert digests(tmp_path / "other")["train/000001.png"] != digests(folder)["train/000001.png"]


def test_splits_differ(folder):
    files = digests(folder)
    assert len({digest for name, digest in files.items() if name.startswith(("train/", "val/"))}) == 17


def test_an_image_does_not_depend_on_how_many_follow(folder, tmp_path):
    shapes.write_shapes(tmp_path / "fewer", {"train": 2})
    assert digests(tmp_path / "fewer")["train/000002.png"] == digests(folder)["train/000002.png"]


def test_reads_as_coco(folder):
    dataset = load_coco_instances("shapes_train", str(folder / shapes.instances_json("train")), str(folder / "train"))
    assert dataset.metadata.thing_classes == ["circle", "square", "triangle", "star"]
    assert len(dataset.records) == 12
    sizes = {(record["height"], record["width"]) for record in dataset.records}
    assert any(h > w for h, w in sizes) and any(h < w for h, w in sizes)
    found = [annotation for record in dataset.records for annotation in record["annotations"]]
    assert {annotation["category_id"] for annotation in found} == {0, 1, 2, 3}
    assert all(1 <= len(record["annotations"]) <= 6 for record in dataset.records)
    for record in dataset.records:
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"]) and image.mode == "RGB"


def segments_of(folder, split):
    with open(folder / shapes.panoptic_json(split)) as file:
        panoptic = json.load(file)
    for annotation in panoptic["annotations"]:
        pixels = np.asarray(Image.open(folder / f"panoptic_{split}" / annotation["file_name"])).astype(int)
        yield annotation, pixels[:, :, 0] + 256 * pixels[:, :, 1] + 256**2 * pixels[:, :, 2]


def test_instance_masks_are_the_visible_parts_and_match_the_panoptic_truth(folder):
    coco = COCO(str(folder / shapes.instances_json("train")))
    for annotation, ids in segments_of(folder, "train"):
        instances = coco.loadAnns(coco.getAnnIds(annotation["image_id"]))
        things = [segment for segment in annotation["segments_info"] if segment["category_id"] <= 4]
        assert [thing["category_id"] for thing in things] == [instance["category_id"] for instance in instances]
        for thing, instance in zip(things, instances):
            mask = coco.annToMask(instance)
            np.testing.assert_array_equal(mask, ids == thing["id"])
            assert instance["area"] == thing["area"] == mask.sum()
            if isinstance(instance["segmentation"], list):
                points = np.array(instance["segmentation"][0]).reshape(-1, 2)
                box = [*points.min(axis=0), *np.ptp(points, axis=0)]
            else:
                box = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask)))
            np.testing.assert_allclose(instance["bbox"], box, atol=0.01)


def test_some_visible_parts_are_in_pieces():
    """Over the dataset's images, both segmentation forms occur, and occluded objects among the polygons."""
    kinds = set()
    for image in range(60):
        _, objects, _ = shapes.draw_scene(np.random.default_rng([0, 0, image]))
        kinds |= {"pieces" if polygon is None else "traced" if len(polygon) > 40 else "whole" for _, _, polygon in objects}
    assert kinds == {"pieces", "traced", "whole"}


def test_panoptic_segments_cover_the_image(folder):
    with open(folder / shapes.panoptic_json("val")) as file:
        categories = {category["id"]: category for category in json.load(file)["categories"]}
    assert [(c["name"], c["isthing"]) for c in categories.values()] == [
        ("circle", 1), ("square", 1), ("triangle", 1), ("star", 1), ("stripes", 0), ("checks", 0), ("speckles", 0),
    ]  # fmt: skip
    for annotation, ids in segments_of(folder, "val"):
        segments = annotation["segments_info"]
        assert sorted(np.unique(ids)) == sorted(segment["id"] for segment in segments)
        assert 0 not in ids
        for segment in segments:
            mask = ids == segment["id"]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert segment["area"] == mask.sum() and segment["bbox"] == box and segment["iscrowd"] == 0
        stuff = [segment["category_id"] for segment in segments if not categories[segment["category_id"]]["isthing"]]
        assert 1 <= len(stuff) <= 2 and len(set(stuff)) == len(stuff)


def test_an_interrupted_first_use_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "write_shapes", lambda folder: (folder.mkdir(), (folder / "half").touch(), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        shapes.ensure_shapes(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_of_two_at_once_one_wins(tmp_path, monkeypatch):
    def write(folder):
        folder.mkdir()
        (folder / "mine").touch()
        (tmp_path / "shapes").mkdir()
        (tmp_path / "shapes" / "theirs").touch()

    monkeypatch.setattr(shapes, "write_shapes", write)
    assert shapes.ensure_shapes(tmp_path) == tmp_path / "shapes"
    assert [path.name for path in tmp_path.rglob("*")] == ["shapes", "theirs"]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the shapes dataset to .*file/shapes.*DETECTRON2_DATASETS"):
        shapes.ensure_shapes(tmp_path / "file")


def test_images_of_one_shape_each(tmp_path):
    shapes.write_shape_classes(tmp_path / "a", {"train": 9, "val": 4})
    shapes.write_shape_classes(tmp_path / "b", {"train": 9, "val": 4})
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert [str(path) for path in files if path.parts[1] == "circle"] == [
        "train/circle/00000.jpg",
        "train/circle/00004.jpg",
        "train/circle/00008.jpg",
        "val/circle/00000.jpg",
    ]
    assert len(files) == 13 and {path.parts[1] for path in files} == set(shapes.THINGS)
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)
    assert (tmp_path / "a" / files[0]).read_bytes() != (tmp_path / "a" / "val" / "circle" / "00000.jpg").read_bytes()
