"""The flags that register datasets."""

import argparse

import pytest

from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.data.catalog import CocoFiles, PanopticFiles
from resnest_det.data.formats.labels import LabelFiles
from resnest_det.data.semantic import SemanticFiles
from resnest_det.errors import UserError
from tests.helpers.labels import write_yolo


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_register_flags(parser)
    return registered_datasets(parser.parse_args(arguments))


def test_datasets_of_both_flags(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = parsed(
        "--register",
        "a = ~/a.json, images",
        "--register-panoptic",
        "p=p.json,png,images",
        "--register-panoptic",
        "q=p.json,png,images,i.json",
    )
    assert given == {
        "a": CocoFiles("/home/me/a.json", "images"),
        "p": PanopticFiles("p.json", "png", "images"),
        "q": PanopticFiles("p.json", "png", "images", "i.json"),
    }


@pytest.mark.parametrize(
    "text", ["mine", "=a.json", "=a.json,images", "mine=,images", "mine=a.json,", "mine=a,b,c", "mine=a,images=b,size=3"]
)
def test_malformed_instances(text):
    with pytest.raises(UserError, match="--register .*: expected NAME=ANNOTATIONS.json,IMAGE_DIR or NAME=LABELS"):
        parsed("--register", text)


def test_labels_of_any_format(tmp_path):
    for split in ("train", "val"):
        write_yolo(tmp_path / split, {split: "0 .5 .5 .5 .5"})
    folder = tmp_path / "train"
    expected = LabelFiles(str(folder / "labels"), "yolo", str(folder / "images"))
    assert parsed("--register", f"mine={folder}") == {"mine": expected}
    assert parsed("--register", f"mine={tmp_path},split=train") == {"mine": expected}
    assert parsed("--register", f"mine={folder}/labels,images={folder}/images,from=yolo") == {"mine": expected}


@pytest.mark.parametrize(
    "text, message",
    [
        ("nowhere", "nowhere does not exist"),
        (".,from=yollo", "'yollo' is no format of labels, perhaps 'yolo'"),
        (".,images=nowhere", "nowhere is not a folder of images"),
        (".", "labels of no format that is known"),
    ],
)
def test_labels_that_are_none(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--register mine={text}: .*{message}"):
        parsed("--register", f"mine={text}")


@pytest.mark.parametrize("text", ["mine", "mine=a.json,b", "=a.json,b,c", "mine=a.json,,c", "mine=a,b,c,d,e"])
def test_malformed_panoptic(text):
    with pytest.raises(UserError, match="--register-panoptic .*: expected NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR"):
        parsed("--register-panoptic", text)


def test_semantic_datasets(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = parsed(
        "--register-semantic",
        "ade=~/labels, images, names.txt, ignore=0",
        "--register-semantic",
        "voc=labels,images,21,list=~/train.txt",
        "--register-semantic",
        "city=labels,images,c.json,label_suffix=_gtFine_labelTrainIds,image_suffix=_leftImg8bit",
        "--register-semantic",
        "both=labels,images,c.json,instances=~/i.json",
        "--register-semantic",
        "zero=labels,images,150,reduce_zero_label=yes",
    )
    assert given == {
        "ade": SemanticFiles("/home/me/labels", "images", "names.txt", 0),
        "voc": SemanticFiles("labels", "images", 21, list_file="/home/me/train.txt"),
        "city": SemanticFiles("labels", "images", "c.json", label_suffix="_gtFine_labelTrainIds", image_suffix="_leftImg8bit"),
        "both": SemanticFiles("labels", "images", "c.json", instances_json="/home/me/i.json"),
        "zero": SemanticFiles("labels", "images", 150, reduce_zero_label=True),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("mine=labels,images", "expected NAME=LABEL_DIR,IMAGE_DIR,CLASSES"),
        ("=labels,images,3", "expected NAME=LABEL_DIR,IMAGE_DIR,CLASSES"),
        ("mine=labels,images,", "expected NAME=LABEL_DIR,IMAGE_DIR,CLASSES"),
        ("mine=labels,images,3,ignored=0", "'ignored=0' is not one of ignore=, list=, .*did you mean ignore?"),
        ("mine=labels,images,3,255", "'255' is not one of ignore="),
        ("mine=labels,images,3,ignore=none", "ignore is 'none'; it must be the value of a byte, 0 to 255"),
        ("mine=labels,images,3,ignore=256", "ignore is 256; it must be"),
        ("mine=labels,images,3,reduce_zero_label=0", "reduce_zero_label is '0'; supported: yes, no"),
        ("mine=labels,images,3,list=a.txt,instances=i.json", "list is a.txt, but the images are those of i.json already"),
    ],
)
def test_malformed_semantic(text, message):
    with pytest.raises(UserError, match=f"--register-semantic {text}: {message}"):
        parsed("--register-semantic", text)


def test_one_name_for_two_datasets():
    with pytest.raises(UserError, match="another flag already registers mine"):
        parsed("--register", "mine=a.json,images", "--register", "mine=b.json,images")
