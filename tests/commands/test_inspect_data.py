"""The command inspect."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from resnest_det.commands.inspect_data import main
from resnest_det.configuration.reading import find_config_file
from resnest_det.errors import UserError
from tests.helpers.datasets import write_coco

OBJECT = {"image_id": 1, "bbox": [20, 20, 60, 50], "area": 3000, "segmentation": [[20, 20, 80, 20, 80, 70, 20, 70]]}


@pytest.fixture(autouse=True)
def work_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(tmp_path, *annotations, name="made"):
    json_file, folder = write_coco(tmp_path, [(1, 100, 120), (2, 100, 120)], annotations or [OBJECT], name=name)
    return f"{json_file},{folder}"


def test_counts_findings_and_pictures(tmp_path, capsys):
    flipped = {"image_id": 2, "bbox": [30, 30, -10, 10], "area": 100}
    main([made(tmp_path, OBJECT, flipped), "--output", "out"])
    said = capsys.readouterr().out
    assert "made: 2 images of 120 x 100 pixels" in said and re.search(r"cat +1 +0 +1 +0 +1\n", said)
    assert "suspicious: 1 x a flipped box" in said and "2.png, annotation 2, [30, 30, -10, 10]" in said
    with open("out/suspicious.csv", newline="") as file:
        assert [row["annotation"] for row in csv.DictReader(file)] == ["2"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["1.png", "2.png"]


def test_what_is_suspicious_has_a_red_frame(tmp_path, capsys):
    """Of each kind one at least, also of what reading leaves out; the others are drawn as ever."""
    double = OBJECT | {"bbox": [21, 20, 60, 50]}
    flipped = {"image_id": 2, "bbox": [100, 80, -60, -50], "area": 3000}
    main([made(tmp_path, OBJECT, double, double, flipped), "--output", "out", "--count", "2"])
    assert "2 images with what is suspicious in red: out/suspicious" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out" / "suspicious").iterdir()) == ["1.png", "2.png"]
    for folder in ("suspicious", "images"):
        picture = np.asarray(Image.open(f"out/{folder}/2.png"), dtype=int)  # enlarged four times
        red = (picture[..., 0] > 200) & (picture[..., 1:].max(axis=2) < 60)
        assert red[200, 155:165].any() and red[200, 395:405].any() and not red[200, 200:300].any()
    main([made(tmp_path, name="fine"), "--output", "fine_out"])
    assert not (tmp_path / "fine_out" / "suspicious").exists()


def test_findings_are_told_of_a_file_that_cannot_be_used(tmp_path, capsys):
    of_none = {"image_id": 1, "category_id": 7, "bbox": [20, 20, 60, 50]}
    with pytest.raises(UserError, match="category id 7 is not in the list"):
        main([made(tmp_path, OBJECT, of_none), "--output", "out"])
    assert "suspicious: 1 x of a category that the file does not list" in capsys.readouterr().out


def test_images_in_two_datasets_are_told(tmp_path, capsys):
    first, second = made(tmp_path), made(tmp_path, name="other")
    main([first, second, "--output", "out", "--count", "0"])
    assert "suspicious: 2 x an image in both datasets" in capsys.readouterr().out


def test_images_are_as_the_model_sees_them(tmp_path):
    """Under a crop to 50 x 60 pixels, they are that large, but for the enlargement of small ones."""
    (tmp_path / "crop.yaml").write_text(
        f"_BASE_: {find_config_file('mask_rcnn_ResNeSt14_FPN_shapes')}\nINPUT:\n  MIN_SIZE_TRAIN: [0]\n"
        "  CROP: {ENABLED: True, TYPE: absolute, SIZE: [60, 60]}\n"
    )
    main([made(tmp_path), "--output", "out", "--config-file", "crop.yaml"])
    assert np.asarray(Image.open("out/images/1.png")).shape == (480, 480, 3)


@pytest.mark.extras
def test_results_beside_the_truth(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    data = made(tmp_path, OBJECT, OBJECT | {"image_id": 2})
    found = {"image_id": 2, "category_id": 1, "bbox": [20, 20, 60, 50], "score": 0.9}
    (tmp_path / "results.json").write_text(json.dumps([found, found | {"image_id": 1, "category_id": 2}]))
    main([data, "--results", "results.json", "--output", "out", "--count", "1"])
    said = capsys.readouterr().out
    assert "boxes at 50% or more: 1 objects missed, 1 detections false" in said
    assert [path.name for path in (tmp_path / "out" / "worst").iterdir()] == ["001_1.png"]
    for plot in ("precision_recall", "ap_by_size", "confusion_matrix", "calibration", "errors", "classes_made"):
        assert np.asarray(Image.open(f"out/{plot}.png")).std() > 1, plot


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="similar name: coco_2017_val"):
        main(["coco_2017_vall"])
    with pytest.raises(UserError, match="--count is -1"):
        main(["shapes_val", "--count", "-1"])
    first, second = made(tmp_path), made(tmp_path, name="other")
    with pytest.raises(UserError, match="--results are of one dataset, and these are 2: made, other"):
        main([first, second, "--results", "results.json"])
