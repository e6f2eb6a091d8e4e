"""Dataset names."""

import json
import shutil

import pytest

from resnest_det.data import catalog, shapes
from resnest_det.errors import UserError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))


def test_registered_dataset_is_read_on_demand(write_coco, tmp_path):
    catalog.register_coco("mine", f"{tmp_path}/made.json", f"{tmp_path}/made")
    with pytest.raises(UserError, match="dataset mine: expected its annotations at .*made.json"):
        catalog.get_dataset("mine")
    write_coco([(4, 10, 12)], [{"image_id": 4, "bbox": [1, 1, 4, 4]}])
    dataset = catalog.get_dataset("mine")
    assert dataset.name == dataset.metadata.name == "mine"
    assert dataset.metadata.json_file == f"{tmp_path}/made.json" and dataset.metadata.image_root == f"{tmp_path}/made"
    assert [record["image_id"] for record in dataset.records] == [4]
    shutil.rmtree(tmp_path / "made")
    with pytest.raises(UserError, match="dataset mine: expected its images in .*made, which is not a folder"):
        catalog.get_dataset("mine")


def test_names_are_not_taken_twice():
    catalog.register_coco("mine", "a.json", "images")
    catalog.register_coco("mine", "a.json", "images")
    for name in ("mine", "coco_2017_val", "shapes_train"):
        with pytest.raises(UserError, match=f"{name} already exists"):
            catalog.register_coco(name, "b.json", "images")


def test_unknown_names_get_the_nearest_and_how_to_register():
    catalog.register_coco("penguins_train", "a.json", "images")
    for wrong, near in (("coco_2017_vall", "coco_2017_val"), ("penguin_train", "penguins_train"), ("shape_val", "shapes_val")):
        with pytest.raises(UserError, match=f"unknown dataset '{wrong}'; nearest known names: {near}.*--register {wrong}="):
            catalog.get_dataset(wrong)


def test_absent_coco_says_where_it_is_expected_and_how_to_get_it(tmp_path):
    with pytest.raises(UserError) as error:
        catalog.get_dataset("coco_2017_train")
    message = str(error.value)
    assert str(tmp_path / "root/coco/annotations/instances_train2017.json") in message
    assert "http://images.cocodataset.org/zips/train2017.zip" in message
    assert "annotations_trainval2017.zip" in message and "DETECTRON2_DATASETS" in message and "shapes_train" in message
    assert "\n" not in message


def test_coco_is_found_in_detectron2s_folders(tmp_path):
    root = tmp_path / "root/coco"
    (root / "annotations").mkdir(parents=True)
    content = {
        "images": [{"id": 9, "height": 4, "width": 5, "file_name": "9.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected its images in .*coco/val2017.*val2017.zip"):
        catalog.get_dataset("coco_2017_val")
    (root / "val2017").mkdir()
    (record,) = catalog.get_dataset("coco_2017_val").records
    assert record["file_name"] == str(root / "val2017/9.jpg")


def test_default_root_is_datasets(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(catalog.datasets_root()) == "datasets"


def test_shapes_are_generated_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "write_shapes", lambda folder, write=shapes.write_shapes: write(folder, {"train": 2, "val": 1}))
    dataset = catalog.get_dataset("shapes_train")
    assert len(dataset.records) == 2
    assert dataset.records[0]["file_name"] == str(tmp_path / "root/shapes/train/000001.png")
    written = (tmp_path / "root/shapes/annotations/instances_train.json").stat().st_mtime_ns
    assert len(catalog.get_dataset("shapes_val").records) == 1
    assert (tmp_path / "root/shapes/annotations/instances_train.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "..", "a\nb", "\x1b[2J"])
def test_names_that_would_lead_out_of_a_folder_or_into_a_terminal_are_refused(name):
    registrations = [(catalog.register_coco, ("a.json", "images")), (catalog.register_panoptic, ("a.json", "png", "images"))]
    for register, paths in registrations:
        with pytest.raises(UserError, match="dataset name") as error:
            register(name, *paths)
        assert str(error.value).isprintable()
