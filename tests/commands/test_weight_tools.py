"""convert_weights, classify and verify_imagenet as a user runs them."""

import importlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from resnest_det import UserError, create_model, transforms_for
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.names import from_own_names
from tests.helpers.timm_reference import randomise


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


def test_classify_with_classes_of_ones_own(tmp_path, capsys, checkpoint):
    Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13).save(tmp_path / "deep.png")
    (tmp_path / "names.txt").write_text("\ufeffoak\r\nash \n\nbeech\n", encoding="utf-8")
    arguments = [tmp_path / "deep.png", "--model", "resnest14", "--checkpoint", checkpoint, "--num-classes", 3]
    run("classify", *arguments, "--names", tmp_path / "names.txt")
    named = [line.split("%  ") for line in capsys.readouterr().out.splitlines()[1:]]
    run("classify", *arguments)
    numbered = [line.split("%  ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(name for _, name in named) == ["ash", "beech", "oak"]
    assert [["oak", "ash", "beech"][int(name.removeprefix("class "))] for _, name in numbered] == [name for _, name in named]
    assert [share for share, _ in named] == [share for share, _ in numbered]


@pytest.mark.parametrize(
    "extra, reason",
    [
        (["--num-classes", 3], "--num-classes needs a --checkpoint"),
        (["--num-classes", 0, "--checkpoint", "x.pth"], "--num-classes is 0, expected at least 1"),
        (["--num-classes", 3, "--checkpoint", "{checkpoint}", "--names", "{names}"], "names.txt has 2 names, expected 3"),
        (["--names", "{names}"], "names.txt has 2 names, expected 1000"),
        (["--names", "gone.txt"], "--names gone.txt cannot be read: No such file"),
        (["--names", "{binary}"], "--names .*binary.txt cannot be read: it is no UTF-8 text"),
    ],
)
def test_classify_refuses_before_it_reads(tmp_path, extra, reason):
    (tmp_path / "names.txt").write_text("oak\nash\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    torch.save({"fc.weight": torch.zeros(3, 4)}, tmp_path / "x.pth")
    paths = {"{checkpoint}": tmp_path / "x.pth"} | {"{names}": tmp_path / "names.txt", "{binary}": tmp_path / "binary.txt"}
    with pytest.raises(UserError, match=reason):
        run("classify", tmp_path / "none.png", *(paths.get(each, each) for each in extra))


def test_tools_refuse_a_file_whose_head_would_be_random(tmp_path, checkpoint):
    state = read_checkpoint(checkpoint)["state_dict"]
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "headless.pth")
    Image.new("RGB", (50, 70)).save(tmp_path / "x.png")
    class_folders(tmp_path / "data", images_each=1)
    weights = ["--model", "resnest14", "--num-classes", 3, "--checkpoint"]
    jobs = {
        "classify": [tmp_path / "x.png"],
        "verify_imagenet": ["--data", tmp_path / "data"],
        "export_model": ["--format", "torchscript", "--out", tmp_path / "m.pt"],
    }
    for tool, arguments in jobs.items():
        with pytest.raises(UserError, match="headless.pth: they have no classification head"):
            run(tool, *arguments, *weights, tmp_path / "headless.pth")
    weights[3] = 4
    (tmp_path / "data" / "n04").mkdir()
    Image.new("RGB", (50, 70)).save(tmp_path / "data" / "n04" / "x.png")
    for tool, arguments in jobs.items():
        with pytest.raises(UserError, match=r"linear.weight \(3, 2048\) in the file, \(4, 2048\) in the model"):
            run(tool, *arguments, *weights, checkpoint)
    assert not (tmp_path / "m.pt").exists()
    run(
        "export_model",
        *jobs["export_model"],
        "--model",
        "resnest14",
        "--num-classes",
        0,
        "--checkpoint",
        tmp_path / "headless.pth",
    )
    assert (tmp_path / "m.pt").exists()


def test_convert_says_what_was_around_the_network(tmp_path, capsys, checkpoint):
    state = {f"model.{name}": value for name, value in read_checkpoint(checkpoint)["state_dict"].items()}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    run("convert_weights", tmp_path / "x.pth", tmp_path / "y.pth", "--to", "timm")
    assert "timm layout, resnest14, without the key 'state_dict' and the prefix 'model.'" in capsys.readouterr().out


def test_verify_imagenet_reads_every_mode(tmp_path, checkpoint):
    class_folders(tmp_path, images_each=1)
    ramp = np.tile(np.arange(80, dtype=np.uint16) * 800, (60, 1))
    for name, pixels in (("n01", ramp), ("n02", ramp.astype(np.float32) / 65535)):
        Image.fromarray(pixels).save(tmp_path / name / "deep.tif")
    arguments = ["--data", tmp_path, "--model", "resnest14", "--checkpoint", checkpoint, "--num-classes", 3, "--workers", 0]
    run("verify_imagenet", *arguments)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "n03" / "deep.tif")
    with pytest.raises(UserError, match="n03/deep.tif: float pixels go from 0 to 63200"):
        run("verify_imagenet", *arguments)


def test_classify_image_that_cannot_be_read(tmp_path):
    (tmp_path / "x.jpg").write_text("no image")
    with pytest.raises(UserError, match="x.jpg cannot be read"):
        run("classify", tmp_path / "x.jpg")


@pytest.mark.parametrize("workers, crop", [(0, "authors"), (2, "resize")])
def test_verify_imagenet(tmp_path, capsys, checkpoint, workers, crop):
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
        "--crop",
        crop,
    )
    model = create_model("resnest14", num_classes=3, checkpoint_path=checkpoint).eval()
    transform, right = transforms_for(model, crop), 0
    for label, folder in enumerate(sorted((tmp_path / "data" / "val").iterdir())):
        for path in folder.iterdir():
            with torch.no_grad():
                right += int(model(transform(Image.open(path).convert("RGB"))[None]).argmax() == label)
    captured = capsys.readouterr()
    assert (
        f"resnest14: top-1 {100 * right / 9:.2f} %, top-5 100.00 % of 9 images (crop {crop})" in captured.out
        and "images/s" in captured.out
    )
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


def test_bad_input_is_one_line_and_status_2(tmp_path, resnest_det_command):
    (tmp_path / "x.pth").write_text("<html>")
    done = resnest_det_command("convert", tmp_path / "x.pth", tmp_path / "y.pth", "--to", "timm")
    assert done.status == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"error: checkpoint {tmp_path}/x.pth is a web page, not the file itself: its address has moved, or wants a login"
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
