"""convert_weights, classify and verify_imagenet as a user runs them."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from resnest_det import UserError, create_model, transforms_for
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.names import from_own_names
from tests.backbone.timm_reference import randomise

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool, *arguments):
    importlib.import_module(f"resnest_det.commands.{tool}").main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = randomise(create_model("resnest14", num_classes=3))
    path = tmp_path_factory.mktemp("weights") / "three.pth"
    torch.save({"state_dict": from_own_names(model.state_dict(), "timm")}, path)
    return path


def class_folders(folder, images_each=3):
    random = np.random.default_rng(0)
    for name in ("n01", "n02", "n03"):
        (folder / name).mkdir(parents=True)
        for index in range(images_each):
            pixels = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert("L" if index == 0 else "RGB").save(folder / name / f"{index}.png")


@pytest.mark.parametrize(
    "layout, out",
    [("mmdet", "x.pth"), ("mmdet", "x.safetensors"), ("detectron2", "x.pkl"), ("detectron2", "x.pth"), ("timm", "x.safetensors")],
)
def test_convert_there_and_back(tmp_path, capsys, checkpoint, layout, out):
    run("convert_weights", checkpoint, tmp_path / out, "--to", layout)
    assert "timm layout, resnest14" in capsys.readouterr().out
    run("convert_weights", tmp_path / out, tmp_path / "back.pth", "--to", "timm")
    expected, back = read_checkpoint(checkpoint)["state_dict"], read_checkpoint(tmp_path / "back.pth")
    assert back.keys() == expected.keys()
    for name, value in expected.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name
    timm.create_model("resnest14d", num_classes=3, checkpoint_path=str(tmp_path / "back.pth"))  # strict


def test_convert_for_detectron2_says_that_names_are_to_be_looked_up(tmp_path, checkpoint):
    run("convert_weights", checkpoint, tmp_path / "x.pth", "--to", "detectron2", "--prefix", "backbone.bottom_up.")
    converted = read_checkpoint(tmp_path / "x.pth")
    assert converted["matching_heuristics"] is True and "__author__" in converted
    assert "backbone.bottom_up.res2.0.conv1.norm.weight" in converted["model"] and "linear.bias" in converted["model"]


def test_convert_leaves_heads_of_a_detector_and_says_so(tmp_path, capsys, checkpoint):
    state = {
        f"backbone.{name}": value
        for name, value in from_own_names(create_model("resnest14", num_classes=0).state_dict(), "mmdet").items()
    }
    torch.save({"state_dict": {**state, "neck.lateral_convs.0.conv.weight": torch.zeros(1)}, "meta": {}}, tmp_path / "in.pth")
    run("convert_weights", tmp_path / "in.pth", tmp_path / "out.pth", "--to", "timm")
    assert "left out: 1 parameters" in capsys.readouterr().out
    assert "conv1.0.weight" in read_checkpoint(tmp_path / "out.pth")


@pytest.mark.parametrize(
    "out, extra, reason",
    [
        ("x.txt", ["--to", "timm"], "unknown suffix '.txt'"),
        ("x.pkl", ["--to", "timm"], "only Detectron2 reads .pkl"),
        ("there.pth", ["--to", "timm"], "exists; add --overwrite"),
        ("none/x.pth", ["--to", "timm"], "is not a folder"),
    ],
)
def test_convert_refuses(tmp_path, checkpoint, out, extra, reason):
    (tmp_path / "there.pth").write_text("precious")
    with pytest.raises(UserError, match=reason):
        run("convert_weights", checkpoint, tmp_path / out, *extra)
    assert (tmp_path / "there.pth").read_text() == "precious"


def test_classify_names_the_five_most_probable(tmp_path, capsys, monkeypatch):
    model = randomise(create_model("resnest14"))
    torch.nn.init.zeros_(model.linear.weight)
    model.linear.bias.data.fill_(-20.0)
    model.linear.bias.data[[282, 1, 999, 0, 7]] = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04]).log()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    Image.new("L", (50, 70)).save(tmp_path / "gray.png")
    run("classify", tmp_path / "gray.png", "--model", "resnest14d", "--checkpoint", tmp_path / "x.pth")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "gray.png")
    assert [line.split("%")[0].strip() for line in lines[1:]] == ["60.0", "20.0", "10.0", "6.0", "4.0"]
    assert "tiger cat" in lines[1] and "goldfish" in lines[2] and "toilet tissue" in lines[3] and "tench" in lines[4]


def test_classify_image_that_cannot_be_read(tmp_path):
    (tmp_path / "x.jpg").write_text("no image")
    with pytest.raises(UserError, match="x.jpg cannot be read"):
        run("classify", tmp_path / "x.jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_verify_imagenet(tmp_path, capsys, checkpoint, workers):
    class_folders(tmp_path / "data" / "val")
    run(
        "verify_imagenet",
        "--data",
        tmp_path / "data",
        "--model",
        "resnest14",
        "--checkpoint",
        checkpoint,
        "--num-classes",
        3,
        "--batch-size",
        4,
        "--workers",
        workers,
    )
    model = create_model("resnest14", num_classes=3, checkpoint_path=checkpoint).eval()
    transform, right = transforms_for(model), 0
    for label, folder in enumerate(sorted((tmp_path / "data" / "val").iterdir())):
        for path in folder.iterdir():
            with torch.no_grad():
                right += int(model(transform(Image.open(path).convert("RGB"))[None]).argmax() == label)
    captured = capsys.readouterr()
    assert f"resnest14: top-1 {100 * right / 9:.2f} %, top-5 100.00 % of 9 images" in captured.out and "images/s" in captured.out
    assert "9/9" in captured.err


@pytest.mark.parametrize("workers", [0, 2])
def test_verify_imagenet_names_a_broken_image(tmp_path, checkpoint, workers):
    class_folders(tmp_path)
    (tmp_path / "n02" / "1.png").write_text("no image")
    with pytest.raises(UserError, match="n02/1.png cannot be read"):
        run(
            "verify_imagenet",
            "--data",
            tmp_path,
            "--model",
            "resnest14",
            "--checkpoint",
            checkpoint,
            "--num-classes",
            3,
            "--workers",
            workers,
        )


def test_verify_imagenet_folder_of_another_layout(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        run("verify_imagenet", "--data", tmp_path / "none")
    with pytest.raises(UserError, match="one folder of images for each class"):
        run("verify_imagenet", "--data", tmp_path)
    (tmp_path / "n01").mkdir()
    with pytest.raises(UserError, match="one folder of images for each class"):
        run("verify_imagenet", "--data", tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "n01" / "x.png")
    with pytest.raises(UserError, match="1 class folders, expected 1000"):
        run("verify_imagenet", "--data", tmp_path)


def test_bad_input_is_one_line_and_status_2(tmp_path):
    (tmp_path / "x.pth").write_text("<html>")
    done = subprocess.run(
        [sys.executable, TOOLS / "convert_weights.py", tmp_path / "x.pth", tmp_path / "y.pth", "--to", "timm"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOOLS.parent)},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"error: checkpoint {tmp_path}/x.pth is a web page, not a checkpoint: the address it came from has moved"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("suffix", ["safetensors", "pkl"])
def test_converted_file_tells_that_it_was_damaged(tmp_path, checkpoint, suffix):
    out = tmp_path / f"x.{suffix}"
    run("convert_weights", checkpoint, out, "--to", "detectron2")
    whole = bytearray(out.read_bytes())
    middle = len(whole) // 2
    at = next(index for index in range(middle, len(whole)) if whole[index] < 64)  # in a pickle's text, one that stays a byte
    whole[at] ^= 1
    out.write_bytes(whole)
    with pytest.raises(UserError, match=f"x.{suffix} is damaged: .* not the numbers that were written"):
        read_checkpoint(out)
