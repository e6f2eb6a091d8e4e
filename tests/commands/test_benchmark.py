"""The command benchmark."""

import json
import math

import pytest
import torch

from resnest_det.commands.benchmark import main
from resnest_det.commands.benchmark_measuring import Task, measure
from resnest_det.errors import UserError

SMALL = ["--config-file", "mask_rcnn_ResNeSt14_FPN_shapes", "--device", "cpu", "--size", "48x80", "--quick", "--runs", "2"]
NARROW = ["MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "TEST.DETECTIONS_PER_IMAGE", "5"]

WIDE = ["MODEL.RESNETS.WIDTH_PER_GROUP", "64", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"]  # as timm's


def figures(tmp_path, *arguments):
    path = tmp_path / "figures.json"
    main([*SMALL, *arguments, "--json", str(path)])
    return json.loads(path.read_text())


def test_networks_are_timed_beside_others_and_a_matrix_product(tmp_path, capsys):
    report = {}
    for what in ("backbone", "detector", "step"):
        report |= figures(tmp_path, "--what", what, *(WIDE if what == "backbone" else NARROW))["tasks"]
    assert list(report) == ["backbone, one image of 48x80", "detector, one image of 48x80", "training step, 2 images of 48x80"]
    backbone = report["backbone, one image of 48x80"]
    assert backbone["reference"] == "timm" and backbone["operations"] > 1e8
    assert backbone["contenders"]["timm"]["difference"] is None
    # The same weights: float32's rounding, over some forty layers.
    assert backbone["contenders"]["resnest_det"]["difference"] < 1e-5
    assert backbone["contenders"]["resnest_det, prepared"]["difference"] < 1e-4
    for task in report.values():
        for each in task["contenders"].values():
            assert len(each["seconds"]) == 2 and 0 < each["min"] <= each["median"] <= each["max"]
            assert each["share_of_product"] == pytest.approx(
                task["operations"] / each["median"] / task["product_flops"], rel=1e-6
            )
    printed = capsys.readouterr().out
    assert "torch uses" in printed and "| timm |" in printed and "of the product" in printed


@pytest.mark.parametrize("what, items", [("data", 8), ("read", 200), ("evaluate", 20)])
def test_what_is_around_the_networks_is_timed_and_compared(what, items, tmp_path):
    (task,) = figures(tmp_path, "--what", what)["tasks"].values()
    assert task["items"] == items
    differences = [each["difference"] for each in task["contenders"].values()]
    most = 1e-13 if what == "evaluate" else 0  # percent: NumPy's releases round pycocotools' means in another last bit
    assert None in differences and all(each is None or each <= most for each in differences)


@pytest.mark.extras
def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    main([*SMALL, "--what", "evaluate", "--plot", str(tmp_path / "plots" / "figures.svg")])
    text = (tmp_path / "plots" / "figures.svg").read_text()
    assert "<svg" in text


def test_contenders_take_turns_and_are_compared():
    calls = []
    runs = {name: lambda name=name: calls.append(name) or len(name) for name in ("one", "three")}
    result = measure(Task("counting", runs, "one", lambda found, expected: found - expected), 3, torch.device("cpu"))
    assert calls == ["one", "one", "three", "three", *["one", "three"] * 3]
    assert [each["difference"] for each in result["contenders"].values()] == [None, 2]
    assert result["product_flops"] is None and "share_of_product" not in result["contenders"]["one"]
    assert all(math.isfinite(each["median"]) for each in result["contenders"].values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "64"], "--size 64: expected HEIGHTxWIDTH"),
        (["--size", "0x64"], "--size 0x64: expected HEIGHTxWIDTH"),
        (["--size", ""], "--size : expected HEIGHTxWIDTH"),
        (["--runs", "0"], "at least 1"),
        (["--what", "step", "--batch", "1"], "batch norm inside split attention cannot be trained on one image"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        main([*SMALL, *arguments])


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--what", "speed"])
    assert "invalid choice: 'speed'" in capsys.readouterr().err
