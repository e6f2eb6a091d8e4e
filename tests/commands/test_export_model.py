"""The command export_model."""

import pytest
import torch

from resnest_det.backbone.classifier import create_model
from resnest_det.commands.export_model import main
from resnest_det.errors import UserError


@torch.no_grad()
def test_checkpoint_becomes_a_file_that_gives_its_numbers(tmp_path, capsys):
    torch.manual_seed(0)
    model = create_model("resnest14", num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    out = tmp_path / "tuned.pt2"
    main(
        [
            "--model",
            "resnest14d",
            "--checkpoint",
            str(tmp_path / "tuned.pth"),
            "--num-classes",
            "5",
            "--format",
            "exported",
            "--out",
            str(out),
            "--probabilities",
        ]
    )
    images = torch.randn(2, 3, 64, 64)
    exported = torch.export.load(str(out)).module()
    torch.testing.assert_close(exported(images), model(images).softmax(1), rtol=0, atol=1e-4)
    printed = capsys.readouterr().out
    assert "input data (batch, 3, height, width) float32, RGB, normalised; output prob" in printed
    assert "ran it on 1x3x224x224" in printed and "ran it on 3x3x75x101" in printed


def test_features_by_index(tmp_path, capsys):
    out = tmp_path / "features.pt"
    main(
        [
            "--model",
            "resnest14",
            "--untrained",
            "--features",
            "1",
            "3",
            "--format",
            "torchscript",
            "--out",
            str(out),
            "--bgr",
            "--pixels",
        ]
    )
    maps = torch.jit.load(str(out))(torch.zeros(1, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [(1, 256, 16, 24), (1, 1024, 4, 6)]
    assert "BGR, pixels 0 ... 255; output res2, res4" in capsys.readouterr().out


def test_bad_input_is_refused_before_weights_are_fetched(tmp_path, monkeypatch):
    def no_model(*args, **kwargs):
        raise AssertionError("a model was made")

    monkeypatch.setitem(main.__globals__, "create_model", no_model)
    with pytest.raises(UserError, match="its folder does not exist"):
        main(["--model", "resnest14", "--format", "torchscript", "--out", str(tmp_path / "none" / "m.pt")])
    with pytest.raises(UserError, match="opset 13 is for onnx, the format is torchscript"):
        main(["--model", "resnest14", "--format", "torchscript", "--opset", "13", "--out", str(tmp_path / "m.pt")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        main(["--model", "resnest14", "--format", "onnx", "--out", str(tmp_path / "m.onnx")])
    monkeypatch.undo()
    with pytest.raises(UserError, match="unknown model 'resnest15'"):
        main(["--model", "resnest15", "--format", "torchscript", "--untrained", "--out", str(tmp_path / "m.pt")])
