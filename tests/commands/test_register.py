"""The flags that register datasets."""

import argparse

import pytest

from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.data.catalog import CocoFiles, PanopticFiles
from resnest_det.errors import UserError


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


@pytest.mark.parametrize("text", ["mine", "mine=a.json", "=a.json,images", "mine=,images", "mine=a.json,", "mine=a,b,c"])
def test_malformed_instances(text):
    with pytest.raises(UserError, match="--register .*: expected NAME=ANNOTATIONS.json,IMAGE_DIR"):
        parsed("--register", text)


@pytest.mark.parametrize("text", ["mine", "mine=a.json,b", "=a.json,b,c", "mine=a.json,,c", "mine=a,b,c,d,e"])
def test_malformed_panoptic(text):
    with pytest.raises(UserError, match="--register-panoptic .*: expected NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR"):
        parsed("--register-panoptic", text)


def test_one_name_for_two_datasets():
    with pytest.raises(UserError, match="another flag already registers mine"):
        parsed("--register", "mine=a.json,images", "--register", "mine=b.json,images")
