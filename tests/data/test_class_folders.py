"""Class folders, Hugging Face's image folders, and what is wrong with them."""

import json
import os

import numpy as np
import pytest

from resnest_det.data.class_folders import read_class_folders, read_split
from resnest_det.errors import UserError
from tests.helpers.class_data import write_class_folders


def names(images):
    return [os.path.relpath(images.records[index]["file_name"]) for index in range(len(images))]


def labels(images):
    return [images.records[index]["label"] for index in range(len(images))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_class_folders(tmp_path / "data", {"train": 3, "val": 2}, side=8)


def test_imagenets_layout(folder):
    (folder / "train" / "green" / "more" / "deep").mkdir(parents=True)
    (folder / "train" / "green" / "0.png").rename(folder / "train" / "green" / "more" / "deep" / "0.JPEG")
    (folder / "train" / "green" / "notes.txt").write_text("no image")
    (folder / "train" / ".hidden").mkdir()
    train, val = read_class_folders(str(folder))
    assert train.classes == val.classes == ("green", "red") and (len(train), len(val)) == (6, 4)
    assert names(train)[:3] == ["data/train/green/1.png", "data/train/green/2.png", "data/train/green/more/deep/0.JPEG"]
    assert labels(train) == train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert names(read_split(str(folder))) == names(val)


@pytest.mark.parametrize("split", ["validation", "test", "dev", "valid", "Val"])
def test_other_names_of_splits(folder, split):
    (folder / "val").rename(folder / split)
    (folder / "train").rename(folder / "training")
    train, val = read_class_folders(str(folder))
    assert (len(train), len(val)) == (6, 4)


def test_a_part_is_held_out_by_the_names_alone(tmp_path, monkeypatch):
    folder = write_class_folders(tmp_path, {"all": 20}, side=8) / "all"
    train, val = read_class_folders(str(folder), held_out=0.2)
    assert (len(train), len(val)) == (32, 8) and not set(names(train)) & set(names(val))
    assert np.bincount(val.labels).tolist() == [4, 4]
    # A new image stays out of the way of the others.
    (folder / "red" / "5.png").with_name("new.png").write_bytes((folder / "red" / "5.png").read_bytes())
    _, again = read_class_folders(str(folder), held_out=0.2)
    assert len(set(names(again)) ^ set(names(val))) <= 2
    moved = write_class_folders(tmp_path / "elsewhere", {"all": 20}, side=8) / "all"
    _, other = read_class_folders(str(moved), held_out=0.2)
    assert {name.split("/")[-1] for name in names(other)} == {name.split("/")[-1] for name in names(val)}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_hugging_faces_metadata(tmp_path, kind):
    folder = write_class_folders(tmp_path, {"train": 2, "validation": 1}, side=8)
    for split in ("train", "validation"):
        rows = []
        for label in ("green", "red"):
            for path in sorted((folder / split / label).iterdir()):
                path.rename(folder / split / f"{label}_{path.name}")
                rows.append({"file_name": f"{label}_{path.name}", "label": label, "text": "a, b"})
            (folder / split / label).rmdir()
        if kind == "csv":
            text = "file_name,label,text\n" + "".join(f'{r["file_name"]},{r["label"]},"{r["text"]}"\n' for r in rows)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / split / f"metadata.{kind}").write_text(text)
    train, val = read_class_folders(str(folder))
    assert train.classes == ("green", "red") and (len(train), len(val)) == (4, 2) and labels(train) == [0, 0, 1, 1]


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path):
    folder = write_class_folders(tmp_path, {"train": 1, "val": 1}, ("blue", "green", "red"), side=8)
    for split in ("train", "val"):
        rows = "".join(f"{name}/0.png,{number}\n" for name, number in (("blue", 10), ("green", 9), ("red", 2)))
        (folder / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    train, _ = read_class_folders(str(folder))
    assert train.classes == ("2", "9", "10") and names(train)[0].endswith("red/0.png")


def test_a_class_may_be_called_train(tmp_path):
    write_class_folders(tmp_path, {"all": 3}, ("green", "red"), side=8)
    (tmp_path / "all" / "red").rename(tmp_path / "all" / "train")
    train, val = read_class_folders(str(tmp_path / "all"))
    assert train.classes == ("green", "train") and (len(train), len(val)) == (4, 2)


def remove(folder, path):
    for image in (folder / path).iterdir():
        image.unlink()


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda f: (f / "val" / "red").rename(f / "val" / "rot"), "are not the same: only .*train has red; only .*val has rot"),
        (lambda f: remove(f, "train/red"), "train: 1 of 2 classes have no image: red"),
        (lambda f: (remove(f, "train/red"), remove(f, "train/green")), "has no class folders with images"),
        (lambda f: (f / "train").rename(f / "t"), "has val and no train"),
        (lambda f: (f / "train" / "metadata.csv").write_text("file_name\nx.png\n"), "row 1 lacks file_name or label"),
        (lambda f: (f / "train" / "metadata.csv").write_text("file_name,label\nx.png,a\n"), "x.png does not exist"),
        (lambda f: (f / "train" / "metadata.csv").write_text("file_name,label\n"), "has no rows"),
        (lambda f: (f / "train" / "metadata.jsonl").write_text("[1]\n"), "metadata.jsonl cannot be read"),
        (lambda f: (f / "train" / "metadata.jsonl").write_text("{"), "metadata.jsonl cannot be read"),
        (lambda f: (f / "train" / "metadata.parquet").write_bytes(b"PAR1"), "CSV or JSON lines"),
        (lambda f: (f / "train" / "metadata.csv").write_bytes(b"\xff\xfe\x00"), "metadata.csv cannot be read"),
    ],
)
def test_bad_folders_are_one_line(folder, damage, told):
    damage(folder)
    with pytest.raises(UserError, match=told):
        read_class_folders(str(folder))


def test_many_classes_that_differ_are_counted(tmp_path):
    for split, count in (("train", 30), ("val", 1)):
        for number in range(count):
            (tmp_path / split / f"c{number:02d}").mkdir(parents=True)
            (tmp_path / split / f"c{number:02d}" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="c01, .*c10 and 19 more"):
        read_class_folders(str(tmp_path))


def test_absent_folders(tmp_path):
    for call in (lambda: read_class_folders(str(tmp_path / "no")), lambda: read_split(str(tmp_path / "no"))):
        with pytest.raises(UserError, match="no such folder of images"):
            call()
    write_class_folders(tmp_path, {"train": 1}, side=8)
    with pytest.raises(UserError, match="held out.*they have one image"):
        read_class_folders(str(tmp_path))
    with pytest.raises(UserError, match="gone: no such folder"):
        read_class_folders(str(tmp_path), str(tmp_path / "gone"))


def test_links_that_lead_back_are_followed_once(folder):
    (folder / "train" / "red" / "again").symlink_to(folder / "train" / "red")
    train, _ = read_class_folders(str(folder))
    assert len(train) == 6
