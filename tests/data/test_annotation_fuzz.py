"""A short run of `tests/fuzz/annotations.py`, and what longer ones found."""

import json
import subprocess
import sys

import pytest

from resnest_det.data.coco import Dataset
from resnest_det.errors import UserError
from tests.fuzz import annotations
from tests.fuzz.limits import problem_of


def test_random_changes_within_limits_of_memory():
    command = [sys.executable, "-m", "tests.fuzz.annotations", "--count", "200", "--seed", "1"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("0 of 800 "), ran.stdout + ran.stderr


@pytest.mark.parametrize(
    "kind, seed, index",
    [
        ("instances", 6, 1220),  # half a surrogate pair as an id
        ("instances", 6, 1297),
        ("panoptic", 6, 386),
        ("panoptic", 11, 2365),  # thousands of characters in the message
        ("both", 11, 3454),
    ],
)
def test_found_earlier(tmp_path, kind, seed, index):
    annotations.prepare(tmp_path)
    (tmp_path / "a.json").write_bytes(annotations.file_of(kind, seed, index))
    assert problem_of(lambda: annotations.read(kind, tmp_path / "a.json"), Dataset) == ""


def read_changed(folder, change):
    content = annotations.instances()
    change(content)
    (folder / "a.json").write_text(json.dumps(content))
    return annotations.read("instances", folder / "a.json")


def test_half_a_surrogate_pair(tmp_path):
    with pytest.raises(UserError, match="a.json: annotation 1: has text of broken Unicode"):
        read_changed(tmp_path, lambda content: content["annotations"][0].update(area="\ud800"))
    with pytest.raises(UserError, match="a.json: annotation at position 0: has text of broken Unicode"):
        read_changed(tmp_path, lambda content: content["annotations"][0].update(id="\ud800"))


@pytest.mark.parametrize("name", ["a\nb.png", "a\0.png", "\x1b[2J", "\ud800.png"])
def test_file_names_that_are_no_plain_text(tmp_path, name):
    with pytest.raises(UserError, match="a.json: image 1: file_name .* has a control character"):
        read_changed(tmp_path, lambda content: content["images"][0].update(file_name=name))


def test_a_category_may_be_called_by_a_long_number(tmp_path):
    dataset = read_changed(tmp_path, lambda content: content["categories"][0].update(name=10**400))
    assert dataset.metadata.thing_classes[0] == str(10**400)


def test_colors_of_categories_with_ids_of_any_size():
    from resnest_det.data.semantic import class_color

    assert class_color(None, 10**400 + 3, "") == class_color(None, 10**400 % 3_000_000 + 3, "")
    assert class_color(None, 7, "") == class_color(None, 3_000_007, "")
