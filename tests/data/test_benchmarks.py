"""The segmentation benchmarks in the layout of their downloads: folders, names of files, values of pixels."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from resnest_det.data import catalog
from resnest_det.data.benchmarks import ADE20K, CITYSCAPES, PASCAL_CONTEXT, PASCAL_CONTEXT_IDS
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.data.shapes import write_shapes
from resnest_det.errors import UserError

HEIGHT, WIDTH = 12, 40


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def values(first, last):
    """Every value from first to last somewhere in a map."""
    return np.resize(np.arange(first, last + 1), (HEIGHT, WIDTH)).astype(np.uint8)


def make_cityscapes(root, kinds=("labelIds", "instanceIds", "color"), split="train"):
    for name in ("aachen/aachen_000000_000019", "ulm/ulm_000001_000019"):
        save(root / f"cityscapes/leftImg8bit/{split}/{name}_leftImg8bit.png", picture())
        for kind in kinds:
            save(root / f"cityscapes/gtFine/{split}/{name}_gtFine_{kind}.png", values(0, 33))
        polygons = root / f"cityscapes/gtFine/{split}/{name}_gtFine_polygons.json"
        polygons.parent.mkdir(parents=True, exist_ok=True)
        polygons.write_text(json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": []}))


def make_ade20k(root, folder="annotations", first=0, last=150):
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save(root / f"ADEChallengeData2016/images/{part}/{name}.jpg", picture())
        save(root / f"ADEChallengeData2016/{folder}/{part}/{name}.png", values(first, last))
    (root / "ADEChallengeData2016/objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")


def make_pascal_context(root, **more):
    folder = root / "VOCdevkit/VOC2010"
    images, annotations = [], []
    for image_id, phase in ((2008000003, "val"), (2008000002, "train"), (2008000007, "test")):
        name = f"{str(image_id)[:4]}_{str(image_id)[4:]}.jpg"
        save(folder / "JPEGImages" / name, picture())
        images.append({"file_name": name, "phase": phase, "height": HEIGHT, "width": WIDTH, "image_id": image_id, "license": 1})
        for number, category in enumerate((*PASCAL_CONTEXT_IDS, 31)):
            mask = np.zeros(HEIGHT * WIDTH, dtype=np.uint8)
            mask[7 * number : 7 * number + 9] = 1
            encoded = mask_util.encode(np.asfortranarray(mask.reshape(HEIGHT, WIDTH)))
            segmentation = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
            entry = {"id": len(annotations), "image_id": image_id, "category_id": category, "segmentation": segmentation}
            annotations.append(entry | {"area": 9, "iscrowd": 0, "bbox": [0, 0, 9, 1], "parts": []})
    content = {"images": images, "annos_segmentation": annotations, "annos_joints": [], "parts": [], "categories": []}
    (folder / "trainval_merged.json").write_text(json.dumps(content | more))
    return content


def test_cityscapes_ids_become_train_ids(root):
    make_cityscapes(root)
    dataset = catalog.get_dataset("cityscapes_fine_sem_seg_train")
    assert [record["file_name"].rsplit("/", 2)[1] for record in dataset.records] == ["aachen", "ulm"]
    labels = read_semantic_labels(dataset.records[0])
    # trainId by id, as in the table of cityscapesscripts/helpers/labels.py.
    official = {
        7: 0,
        8: 1,
        11: 2,
        12: 3,
        13: 4,
        17: 5,
        19: 6,
        20: 7,
        21: 8,
        22: 9,
        23: 10,
        24: 11,
        25: 12,
        26: 13,
        27: 14,
        28: 15,
    }
    official |= {31: 16, 32: 17, 33: 18}
    for value in range(34):
        assert set(labels[values(0, 33) == value]) == {official.get(value, UNLABELLED)}
    metadata = dataset.metadata
    assert metadata.stuff_classes[:2] == ["road", "sidewalk"] and metadata.stuff_classes[18] == "bicycle"
    assert metadata.stuff_colors[0] == (128, 64, 128) and metadata.stuff_colors[11] == (220, 20, 60)
    assert {index: value for value, index in official.items()} == dict(enumerate(metadata.label_values))


def test_cityscapes_converted_for_detectron2(root):
    make_cityscapes(root, kinds=("labelTrainIds",))
    for city in ("aachen/aachen_000000_000019", "ulm/ulm_000001_000019"):
        labels = values(0, 33)
        labels[labels > 18] = 255
        save(root / f"cityscapes/gtFine/train/{city}_gtFine_labelTrainIds.png", labels)
    dataset = catalog.get_dataset("cityscapes_fine_sem_seg_train")
    np.testing.assert_array_equal(read_semantic_labels(dataset.records[1]), labels)
    assert dataset.metadata.label_values == () and dataset.metadata.stuff_classes == list(CITYSCAPES.names)


def test_cityscapes_without_its_labels_says_what_to_do(root):
    with pytest.raises(UserError, match=r"expected its label PNG files in .*gtFine/val.*; unpack gtFine_trainvaltest.zip and"):
        catalog.get_dataset("cityscapes_fine_sem_seg_val")
    make_cityscapes(root, kinds=(), split="val")
    with pytest.raises(UserError, match="has no folder of a city with files .*labelIds.png.* csCreateTrainIdLabelImgs") as error:
        catalog.get_dataset("cityscapes_fine_sem_seg_val")
    assert "\n" not in str(error.value)


def test_cityscapes_registered_as_if_it_had_the_names_of_others(root):
    make_cityscapes(root)
    catalog.register_semantic("mine", str(root / "cityscapes/gtFine/train"), str(root / "cityscapes/leftImg8bit/train"), 19)
    with pytest.raises(UserError, match="2 of 2 are absent; these are Cityscapes' files: train on cityscapes_fine_sem_seg_train"):
        catalog.get_dataset("mine")


def test_a_value_that_cityscapes_does_not_have(root):
    make_cityscapes(root)
    labels = values(0, 33)
    labels[0, :3] = 34
    save(root / "cityscapes/gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png", labels)
    record = catalog.get_dataset("cityscapes_fine_sem_seg_train").records[1]
    with pytest.raises(
        UserError, match="ulm_000001_000019_gtFine_labelIds.png has 3 pixels of value 34; values 0 to 33 are known"
    ):
        read_semantic_labels(record)


@pytest.mark.parametrize("split, name", [("train", "ADE_train_00000001"), ("val", "ADE_val_00000001")])
def test_ade20k_counts_from_one_and_zero_is_no_label(root, split, name):
    make_ade20k(root)
    dataset = catalog.get_dataset(f"ade20k_sem_seg_{split}")
    assert [record["file_name"].rsplit("/", 1)[1] for record in dataset.records] == [f"{name}.jpg"]
    expected = np.where(values(0, 150) == 0, UNLABELLED, values(0, 150).astype(int) - 1)
    np.testing.assert_array_equal(read_semantic_labels(dataset.records[0]), expected)
    metadata = dataset.metadata
    assert len(metadata.stuff_classes) == 150 and metadata.stuff_classes[::149] == ["wall", "flag"]
    assert metadata.stuff_colors[0] == (120, 120, 120) and metadata.stuff_colors[149] == (92, 0, 255)
    assert metadata.label_values == tuple(range(1, 151))


def test_ade20k_converted_for_detectron2(root):
    make_ade20k(root, "annotations_detectron2", first=0, last=149)
    record = catalog.get_dataset("ade20k_sem_seg_val").records[0]
    np.testing.assert_array_equal(read_semantic_labels(record), values(0, 149))
    make_ade20k(root)
    assert "annotations_detectron2" not in catalog.get_dataset("ade20k_sem_seg_val").records[0]["label_png"].file_name


def test_ade20k_that_is_absent_says_what_to_get_and_where_to_put_it(root):
    message = rf"expected its label PNG files in {root}/ADEChallengeData2016/annotations/training, .*; unpack http://data.csail"
    with pytest.raises(UserError, match=message):
        catalog.get_dataset("ade20k_sem_seg_train")


def test_pascal_context_from_its_annotations(root):
    """As detail-api's getMask: regions in the order of the file, the last one counts where they overlap."""
    make_pascal_context(root)
    for phase, image_id in (("train", 2008000002), ("val", 2008000003)):
        (record,) = catalog.get_dataset(f"pascal_context_59_sem_seg_{phase}").records
        assert record["image_id"] == image_id and record["file_name"].endswith(f"2008_{str(image_id)[4:]}.jpg")
        expected = np.full(HEIGHT * WIDTH, UNLABELLED, dtype=np.uint8)
        for index in range(59):
            expected[7 * index : 7 * index + 9] = index
        expected[7 * 59 : 7 * 59 + 9] = PASCAL_CONTEXT_IDS.index(31)
        labels = read_semantic_labels(record)
        np.testing.assert_array_equal(labels, expected.reshape(HEIGHT, WIDTH))
    metadata = catalog.get_dataset("pascal_context_59_sem_seg_val").metadata
    assert metadata.stuff_classes[0] == "aeroplane" and metadata.stuff_classes[36] == "person"
    assert metadata.stuff_colors[:3] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]


def test_pascal_contexts_other_categories_have_no_label(root):
    content = make_pascal_context(root)
    for annotation in content["annos_segmentation"]:
        annotation["category_id"] = 1
    make_pascal_context(root, annos_segmentation=content["annos_segmentation"])
    (record,) = catalog.get_dataset("pascal_context_59_sem_seg_val").records
    assert set(read_semantic_labels(record).ravel()) == {UNLABELLED}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"images": {}}, "trainval_merged.json is not PASCAL-Context's trainval_merged.json, which has images"),
        ({"images": []}, "trainval_merged.json has no image of phase 'val'"),
        (
            {
                "annos_segmentation": [
                    {"image_id": 2008000003, "category_id": 2, "segmentation": {"size": [3, 4], "counts": "0<"}}
                ]
            },
            r"trainval_merged.json: category 2 of 2008_000003.jpg: the mask is \[3, 4\]",
        ),
        (
            {"images": [{"file_name": "../a.jpg", "phase": "val", "height": 1, "width": 1, "image_id": 1}]},
            "image 1: file_name '../a.jpg' is not the name of a file",
        ),
    ],
)
def test_pascal_context_files_that_cannot_be(root, changed, message):
    make_pascal_context(root, **changed)
    with pytest.raises(UserError, match=message):
        catalog.get_dataset("pascal_context_59_sem_seg_val")


def test_tables_of_classes_are_whole():
    for benchmark, classes in ((ADE20K, 150), (CITYSCAPES, 19), (PASCAL_CONTEXT, 59)):
        assert len(set(benchmark.names)) == len(benchmark.names) == len(benchmark.colors) == classes
        assert sorted(set(benchmark.values) - {UNLABELLED}) == list(range(classes))
    assert list(PASCAL_CONTEXT_IDS) == sorted(set(PASCAL_CONTEXT_IDS)) and len(PASCAL_CONTEXT_IDS) == 59


def test_shapes_have_a_class_for_every_pixel(root, monkeypatch):
    write_shapes(root / "shapes", {"train": 3, "val": 2})
    dataset = catalog.get_dataset("shapes_val_sem_seg")
    assert dataset.metadata.stuff_classes == ["circle", "square", "triangle", "star", "stripes", "checks", "speckles"]
    panoptic = catalog.get_dataset("shapes_val_panoptic")
    for record, other in zip(dataset.records, panoptic.records, strict=True):
        labels, stuff = read_semantic_labels(record), read_semantic_labels(other)
        assert record["file_name"] == other["file_name"] and labels.max() < 7
        np.testing.assert_array_equal(np.where(labels < 4, 0, labels - 3), stuff)
        drawn = {annotation["category_id"] for annotation in other["annotations"]}
        assert set(labels[labels < 4]) == drawn
