"""The command benchmark."""

import json

import pytest

from resnest_det.commands.benchmark import main
from resnest_det.errors import UserError


def test_backbone_inference_and_training_are_timed_beside_timm(tmp_path, capsys):
    main(
        [
            "--config-file",
            "mask_rcnn_ResNeSt14_FPN_shapes",
            "--device",
            "cpu",
            "--size",
            "64x96",
            "--batch",
            "2",
            "--runs",
            "2",
            "--json",
            str(tmp_path / "figures.json"),
            "TEST.DETECTIONS_PER_IMAGE",
            "5",
        ]
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["backbone, one image", "inference, one image", "training step, batch of 2"]
    assert "timm" in figures["backbone, one image"]
    for contenders in figures.values():
        for each in contenders.values():
            assert len(each["seconds"]) == 2 and min(each["seconds"]) <= each["median_seconds"] <= max(each["seconds"])
    printed = capsys.readouterr().out
    assert "64x96" in printed and "medians of 2" in printed and "timm" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "64"], "--size 64: expected HEIGHTxWIDTH"),
        (["--runs", "0"], "at least 1"),
        (["--batch", "1"], "batch norm inside split attention cannot be trained on one image"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        main(["--config-file", "mask_rcnn_ResNeSt14_FPN_shapes", "--device", "cpu", *arguments])
