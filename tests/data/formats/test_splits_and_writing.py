"""Folders with splits as tools write them, splitting, and writing labels back."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from hotcoco import COCO

from resnest_det.data.catalog import get_dataset, load_files, register
from resnest_det.data.coco import instances_dataset
from resnest_det.data.formats import packed_labels
from resnest_det.data.formats.labels import counts_by_name
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.splits import find_labels, find_splits
from resnest_det.data.formats.splitting import split_images
from resnest_det.data.formats.writing import write_labels
from resnest_det.errors import UserError
from tests.helpers.datasets import write_coco
from tests.helpers.labels import SIZE, boxes, voc, write_coco_export, write_images, write_voc, write_yolo


def coco_of(folder, images, json_file):
    write_images(folder, [])
    height, width = SIZE
    content = {
        "images": [{"id": i, "file_name": name, "height": height, "width": width} for i, name in enumerate(images)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [5, 5, 20, 10 + i]} for i, _ in enumerate(images)
        ],
    }
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(content))


def names_in(files):
    return sorted(name for name, *_ in boxes(read_labels(files)))


def test_roboflow_coco(tmp_path):
    for split in ("train", "valid", "test"):
        write_images(tmp_path / split, ["x.jpg", "y.jpg"])
        coco_of(tmp_path / split, ["x.jpg", "y.jpg"], tmp_path / split / "_annotations.coco.json")
    splits = find_splits(str(tmp_path))
    assert list(splits) == ["train", "val", "test"]
    assert splits["val"].image_root == str(tmp_path / "valid") and names_in(splits["val"]) == ["x.jpg", "y.jpg"]


def test_coco_layout(tmp_path):
    """Images of one name in both splits are told apart by their folders."""
    for split in ("train2017", "val2017"):
        write_images(tmp_path / split, ["1.jpg"])
        coco_of(tmp_path / split, ["1.jpg"], tmp_path / "annotations" / f"instances_{split}.json")
        coco_of(tmp_path / split, ["1.jpg"], tmp_path / "annotations" / f"person_keypoints_{split}.json")
    splits = find_splits(str(tmp_path))
    for name, folder in (("train", "train2017"), ("val", "val2017")):
        assert splits[name].path == str(tmp_path / "annotations" / f"instances_{folder}.json")
        assert splits[name].image_root == str(tmp_path / folder)


@pytest.mark.parametrize("layout", ["images/{split}", "{split}/images"])
def test_ultralytics_without_data_yaml(tmp_path, layout):
    for split in ("train", "val"):
        images = tmp_path / layout.format(split=split)
        write_images(images, [f"{split}.jpg"])
        labels = tmp_path / layout.format(split=split).replace("images", "labels")
        labels.mkdir(parents=True)
        (labels / f"{split}.txt").write_text("1 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("cat\ndog")
    splits = find_splits(str(tmp_path))
    assert names_in(splits["train"]) == ["train.jpg"] and names_in(splits["val"]) == ["val.jpg"]


def test_image_sets_of_voc(tmp_path):
    write_voc(tmp_path, {stem: voc(("cat", 1, 2, 9, 9), filename=f"{stem}.jpg") for stem in ("a", "b", "c.d")})
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nc.d\n")
    (lists / "val.txt").write_text("b 1\n")
    (lists / "cat_train.txt").write_text("a 1\n")
    splits = find_splits(str(tmp_path))
    assert names_in(splits["train"]) == ["a.jpg", "c.d.jpg"] and names_in(splits["val"]) == ["b.jpg"]


def test_a_column_of_a_csv(tmp_path):
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "boxes.csv").write_text("split,image,label,x1,y1,x2,y2\nTRAIN,a.jpg,cat,1,2,5,6\nVALIDATION,b.jpg,dog,1,2,5,6\n")
    splits = find_splits(str(tmp_path))
    assert names_in(splits["train"]) == ["a.jpg"] and names_in(splits["val"]) == ["b.jpg"]
    assert splits["train"].classes == splits["val"].classes == ("cat", "dog")


def test_one_set_is_split_in_the_same_way_each_time(tmp_path, caplog):
    write_yolo(tmp_path, {f"i{index:02}": f"{index % 2} 0.5 0.5 0.5 0.5" for index in range(20)})
    with caplog.at_level(logging.INFO):
        splits = find_splits(str(tmp_path))
    assert "one set without splits, so 20 of 100 images are for evaluation, drawn with seed 0" in caplog.text
    train, val = names_in(splits["train"]), names_in(splits["val"])
    assert len(train) == 16 and len(val) == 4 and not set(train) & set(val)
    assert Counter(each[1] for each in boxes(read_labels(splits["val"]))) == {"cat": 2, "dog": 2}
    assert names_in(find_splits(str(tmp_path))["val"]) == val
    assert names_in(find_splits(str(tmp_path), seed=1)["val"]) != val


def test_train_and_test_alone_take_val_from_train(tmp_path):
    for split in ("train", "test"):
        write_voc(tmp_path / split, {f"{split}{i}": voc(("cat", 1, 2, 9, 9), filename=f"{split}{i}.jpg") for i in range(5)})
    splits = find_splits(str(tmp_path))
    assert [len(names_in(splits[name])) for name in ("train", "val", "test")] == [4, 1, 5]


def test_a_class_that_a_split_lacks_is_told(tmp_path, caplog):
    write_voc(tmp_path / "train", {"a": voc(("cat", 1, 2, 9, 9), ("dog", 1, 2, 9, 9))})
    write_voc(tmp_path / "val", {"b": voc(("cat", 1, 2, 9, 9), filename="b.jpg")})
    splits = find_splits(str(tmp_path))
    assert "val: has no object of 1 of 2 classes: dog" in caplog.text
    assert [category.name for category in read_labels(splits["val"]).content.categories] == ["cat", "dog"]


def test_what_cannot_be_trained_on(tmp_path):
    write_yolo(tmp_path / "empty", {"a": "", "b": ""})
    with pytest.raises(UserError, match="labels: no object in 1 images to train on"):
        find_splits(str(tmp_path / "empty"), "yolo")
    with pytest.raises(UserError, match="labels of no format that is known"):
        find_splits(str(tmp_path / "empty" / "images"))
    write_voc(tmp_path / "val", {"b": voc(("cat", 1, 2, 9, 9), filename="b.jpg")})
    with pytest.raises(UserError, match="has val, but nothing to train on"):
        find_splits(str(tmp_path), "voc")
    with pytest.raises(UserError, match="does not exist"):
        find_splits(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="'yollo' is no format of labels, perhaps 'yolo'"):
        find_splits(str(tmp_path), "yollo")
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="export.zip: an archive; unpack it"):
        find_splits(str(tmp_path / "export.zip"))


def test_two_formats_in_one_folder_need_a_word(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5", "b": ""})
    (tmp_path / "Annotations").mkdir()
    for stem in "ab":
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc(("sheep", 1, 2, 9, 9), filename=f"{stem}.jpg"))
    with pytest.raises(UserError, match=r"several formats, voc \(Annotations.a.xml\), yolo \(labels.a.txt\); --from names"):
        find_splits(str(tmp_path))
    assert find_splits(str(tmp_path), "voc")["train"].classes == ("sheep",)


def test_a_registered_folder_is_held_to_the_strict_rules(tmp_path, caplog):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5\n1 1 0.5 0.5 0.5\n0 .2 .2 .1 .1"})
    register("formats_yolo", find_labels(str(tmp_path)))
    dataset = get_dataset("formats_yolo", keep_truth=True)
    assert dataset.metadata.thing_classes == ["cat", "dog"] and len(dataset.records[0]["annotations"]) == 3
    assert "dataset formats_yolo: mended 1 boxes clipped to their image (a.txt, line 2)" in caplog.text


def document(counts, seed=0):
    """A document of images with `counts[i]`, how many objects of which class image i has."""
    from resnest_det.data.annotation_files import Annotation, Category, Image, InstanceFile

    rng = np.random.default_rng(seed)
    images = [Image(i, f"video{i % 7}_{i}.jpg", *SIZE) for i in rng.permutation(len(counts)).tolist()]
    annotations = []
    for image in images:
        for category_id, count in counts[image.id].items():
            annotations += [Annotation(0, image.id, category_id, (1, 1, 5, 5)) for _ in range(count)]
    return InstanceFile(images, [Category(i, str(i)) for i in range(4)], annotations)


def test_a_stratified_split_gives_each_class_its_share():
    rng = np.random.default_rng(3)
    counts = [
        {0: int(rng.integers(1, 9)), **({1: 1} if i % 10 == 0 else {}), **({2: 2} if i in (5, 77) else {})} for i in range(200)
    ]
    content = document(counts)
    train, val = split_images(content, 0.2, 0)
    assert train | val == set(range(200)) and not train & val
    share = {c: sum(counts[i].get(c, 0) for i in val) / sum(each.get(c, 0) for each in counts) for c in range(3)}
    assert abs(share[0] - 0.2) < 0.02 and share[1] == 0.2 and share[2] == 0.5
    assert abs(len(val) - 40) <= 5
    # The order of the file says nothing, the seed does.
    assert split_images(document(counts, seed=9), 0.2, 0) == (train, val)
    assert split_images(content, 0.2, 1) != (train, val)


def test_groups_stay_together():
    counts = [{0: 1, 1: i % 3} for i in range(70)]
    train, val = split_images(document(counts), 0.3, 0, group=r"^(video\d)_")
    assert {i % 7 for i in val}.isdisjoint(i % 7 for i in train) and len(val) in (20, 30)
    with pytest.raises(UserError, match="group is '\\^video', which makes 1 group"):
        split_images(document(counts), 0.3, 0, group="^video")
    with pytest.raises(UserError, match=r"group is '\(', which is no regular expression"):
        split_images(document(counts), 0.3, 0, group="(")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_fractions_that_are_none(fraction):
    with pytest.raises(UserError, match="fraction is .*; it must be above 0 and below 1"):
        split_images(document([{0: 1}] * 4), fraction, 0)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_both_parts_have_an_image(stratified, count):
    for seed in range(20):
        train, val = split_images(document([{0: 1}] * count), 0.2, seed, stratified=stratified)
        assert train and val


def made(tmp_path, **changes):
    labels = read_labels(find_labels(str(write_coco_export(tmp_path, **changes))))
    return instances_dataset("made", labels.content, "made.json", labels.image_root, keep_truth=True)


POLYGONS = [[5.125, 5, 25, 5, 25, 15.0625], [30, 20, 40, 20, 40, 30.5, 30, 30], [41, 31, 45, 31, 43, 38]]


def three_objects(**more):
    common, around = {"iscrowd": 0, "category_id": 0}, [1.3, 2.7, 31.3, 2.7, 31.3, 22.81, 1.3, 22.81]
    return [
        common | {"id": 0, "image_id": 0, "bbox": [5.125, 5, 39.875, 33], "segmentation": POLYGONS},
        common | {"id": 1, "image_id": 1, "bbox": [1.3, 2.7, 30, 20.11], "segmentation": [around]} | {"category_id": 1},
        common | {"id": 2, "image_id": 1, "bbox": [2, 2, 10, 10], "segmentation": [[2, 2, 12, 2, 12, 12]]} | more,
    ]  # fmt: skip


@pytest.mark.parametrize("to", ["yolo", "voc", "coco"])
@pytest.mark.parametrize("images", ["link", "copy", "none"])
def test_written_labels_come_back(tmp_path, to, images):
    dataset = made(tmp_path, annotations=three_objects())
    out = tmp_path / ("out.json" if to == "coco" else "out")
    assert not list(write_labels(dataset, str(out), to, images=images))
    if images == "none" and to != "coco":
        assert not (out / "images").exists() and not (out / "JPEGImages").exists()
    back = read_labels(find_labels(str(out), images=str(tmp_path / "images") if images == "none" else None))
    assert [each[1:] for each in boxes(back)] == [
        ("cat", 5.125, 5, 39.875, 33),
        ("cat", 2, 2, 10, 10),
        ("dog", 1.3, 2.7, 30, 20.11),
    ]
    polygons = next(each.segmentation for each in back.content.annotations if each.bbox[0] == 5.125)
    for polygon, original in zip(polygons, POLYGONS):
        np.testing.assert_allclose(polygon, original, atol=1e-3)
    assert not list(tmp_path.glob("*.unfinished*"))


def test_boxes_alone_are_written_as_boxes(tmp_path):
    wanted = [[50, 30, 20, 20], [6, 4, 12, 8], [6, 8, 12, 8]]
    annotations = [{"id": i, "image_id": 0, "category_id": 1, "bbox": box} for i, box in enumerate(wanted)]
    dataset = made(tmp_path, annotations=annotations)
    write_labels(dataset, str(tmp_path / "out"), "yolo")
    assert (tmp_path / "out" / "labels" / "a.txt").read_text() == (
        "1 0.916666667 0.875 0.166666667 0.25\n1 0.2 0.2 0.2 0.2\n1 0.2 0.3 0.2 0.2\n"
    )
    assert (tmp_path / "out" / "labels" / "b.txt").read_text() == ""


def test_what_yolo_has_no_place_for_is_told(tmp_path):
    mask = {"size": list(SIZE), "counts": [0, 10, 30, 10, 40 * 60 - 50]}
    dataset = made(tmp_path, annotations=[*three_objects(iscrowd=1), *(
        {"id": 9, "image_id": 1, "category_id": 0, "bbox": [0, 0, 2, 10], "segmentation": mask},
        {"id": 10, "image_id": 1, "category_id": 0, "bbox": [30, 20, 3, 10]},
    )])  # fmt: skip
    notes = write_labels(dataset, str(tmp_path / "out"), "yolo")
    assert list(notes) == [
        "left out 1 crowds, which YOLO has no place for (annotation 2)",
        "1 masks of pixels, written as polygons around them, without holes (annotation 9)",
        "1 boxes among polygons, written as polygons of their corners (annotation 10)",
    ]
    back = boxes(read_labels(find_labels(str(tmp_path / "out"))))
    assert ("b.jpg", "cat", 0, 0, 2, 10) in back and ("b.jpg", "cat", 30, 20, 3, 10) in back and len(back) == 4


def test_another_library_reads_what_is_written(tmp_path):
    dataset = made(tmp_path, annotations=[each | {"segmentation": []} for each in three_objects()])
    write_labels(dataset, str(tmp_path / "voc"), "voc")
    write_labels(dataset, str(tmp_path / "yolo"), "yolo")
    write_labels(dataset, str(tmp_path / "coco.json"), "coco")
    (tmp_path / "yolo" / "labels" / "data.yaml").write_text((tmp_path / "yolo" / "data.yaml").read_text())
    for read in (
        COCO.from_voc(str(tmp_path / "voc")),
        COCO.from_yolo(str(tmp_path / "yolo" / "labels"), str(tmp_path / "images")),
        COCO(str(tmp_path / "coco.json")),
    ):
        found = sorted(tuple(np.round(each["bbox"], 3)) for each in read.dataset["annotations"])
        np.testing.assert_allclose(found, [(1.3, 2.7, 30, 20.11), (2, 2, 10, 10), (5.125, 5, 39.875, 33)], atol=1e-3)


def test_images_that_would_share_a_label_file(tmp_path):
    write_images(tmp_path / "images", ["a.png"])
    height, width = SIZE
    images = [{"id": i, "file_name": name, "height": height, "width": width} for i, name in enumerate(("a.jpg", "a.png"))]
    dataset = made(tmp_path, images=images)
    with pytest.raises(UserError, match=r"images a\.\w+ and a\.\w+ would have the same label file"):
        write_labels(dataset, str(tmp_path / "out"), "yolo")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.unfinished*"))


def test_a_loss_of_objects_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    dataset = made(tmp_path, annotations=three_objects())
    monkeypatch.setattr("resnest_det.data.formats.writing.outline_of_parts", lambda polygons: list(polygons[0][:4]) + [0.0, 0.0])
    monkeypatch.setattr("resnest_det.data.formats.yolo.parts_of_outline", lambda outline: [[]])
    with pytest.raises(UserError, match="reads as 2 images for 2; objects: cat 0 for 2, dog 0 for 1"):
        write_labels(dataset, str(tmp_path / "out"), "yolo")
    assert not (tmp_path / "out").exists()


def test_counts_by_name(tmp_path):
    assert counts_by_name(made(tmp_path).truth) == {"cat": 1, "dog": 1}


def test_coco_labels_are_parsed_once_for_their_splits_and_the_run(tmp_path, monkeypatch):
    # Times of files count at once: a test would have to wait until they are old.
    monkeypatch.setattr("resnest_det.data.dataset_cache._SETTLED", -(10**12))
    objects = [{"image_id": 1, "bbox": [1, 1, 8, 6], "category_id": 2}]
    (tmp_path / "data").mkdir()
    for name in ("train", "val"):
        write_coco(tmp_path / "data", [(1, 10, 20), (2, 12, 8)], objects, name=name)
    read, calls = packed_labels.read_labels, []
    monkeypatch.setattr(packed_labels, "read_labels", lambda files: calls.append(files.path) or read(files))
    for _ in range(2):
        found = find_splits(str(tmp_path / "data"))
        assert list(found) == ["train", "val"] and found["train"].classes == ("cat", "dog")
        for name, files in found.items():
            dataset = load_files(name, files)
            assert dataset.metadata.thing_classes == ["cat", "dog"] and len(dataset.records[0]["annotations"]) == 1
    assert sorted(calls) == [str(tmp_path / "data" / f"{name}.json") for name in ("train", "val")]
    (tmp_path / "data" / "val" / "2.png").rename(tmp_path / "data" / "val" / "3.png")
    found = find_splits(str(tmp_path / "data"))
    assert len(calls) == 3 and len(load_files("val", found["val"]).records) == 1, "what is there decides, too"
