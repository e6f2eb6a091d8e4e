"""The command export with a detector: from a run's folder to a file that can be evaluated."""

import pytest
import torch

from resnest_det.commands import train_net
from resnest_det.commands.export_model import main
from resnest_det.data import catalog
from resnest_det.errors import UserError
from resnest_det.inference.exported import ExportedDetector
from resnest_det.inference.predictor import Predictor
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import write_tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Arguments of a tiny run, and its folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("exported_run")
    arguments = write_tiny_run(folder)
    few = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
    train_net.main([*arguments, "--engine", "builtin", *few])
    return arguments, folder / "out"


def test_a_run_becomes_a_file_with_the_same_figures(run, tmp_path, capsys, monkeypatch):
    arguments, folder = run
    monkeypatch.setattr(catalog, "_registered", {})  # as in another process: config.yaml names the run's dataset
    weights, out = str(folder / "model_final.pth"), tmp_path / "tiny.pt"
    pictures = str(folder.parent / "images")
    flags = ["--weights", weights, "--format", "torchscript", "--out", str(out), "--evaluate", "--images", pictures]
    name = arguments[-1].partition("=")[0]
    keys = ["DATASETS.TEST", f"('{name}',)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    main(["--config-file", str(folder / "config.yaml"), *flags, *keys])
    printed = capsys.readouterr().out
    assert f"wrote {out}; beside PyTorch:" in printed
    for name in ("generated scene 2", "a blank picture", "a picture of one object", "6.png"):
        assert f"{name}: " in printed
    figures = [line for line in printed.splitlines() if line.startswith("bbox/AP on tiny_")]
    before, after = figures[0].split(": ")[1].split(", ")
    assert before.removesuffix(" of PyTorch") == after.removesuffix(" of the file")

    settings = ExportedDetector(out).settings
    assert settings["trained_on"] == read_checkpoint(weights)["trained_on"]
    assert settings["trained_on"]["thing_classes"] == ["red", "blue"]
    assert (settings["short_side"], settings["max_side"], settings["input_format"]) == (64, 1333, "RGB")
    assert "META_ARCHITECTURE: GeneralizedRCNN" in settings["config"] and str(folder) not in settings["config"]

    picture = sorted((folder.parent / "images").iterdir())[0]
    of_file, of_run = (Predictor(source, score_threshold=0)(picture) for source in (out, weights))
    assert of_file.classes == of_run.classes and of_file.classes.things.names == ("red", "blue")
    # The run's own threshold keeps fewer.
    assert len(of_run.scores) <= len(of_file.scores)
    torch.testing.assert_close(of_file.boxes[: len(of_run.boxes)], of_run.boxes, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="device 'cuda': .*tiny.pt is an exported file, which is run on the CPU"):
        Predictor(out, device="cuda")

    def evaluate(weights, *keys):
        train_net.main([*arguments, "--engine", "builtin", "--eval-only", "MODEL.WEIGHTS", str(weights), *keys])

    evaluate(out, "OUTPUT_DIR", str(tmp_path / "evaluated"))
    assert (tmp_path / "evaluated" / "inference").is_dir()
    with pytest.raises(UserError, match=r"tiny.pt gives boxes, masks, but the configuration's model gives boxes$"):
        evaluate(out, "MODEL.MASK_ON", "False")
    with pytest.raises(UserError, match="TEST.AUG.ENABLED needs the parts of a model"):
        evaluate(out, "TEST.AUG.ENABLED", "True")
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but checkpoint .*tiny.pt was trained on RGB images"):
        evaluate(out, "INPUT.FORMAT", "BGR")


def test_bad_input_is_refused_before_weights_are_read(run, tmp_path, monkeypatch):
    arguments, folder = run
    out = str(tmp_path / "m.pt")

    def refused(reason, *flags):
        with pytest.raises(UserError, match=reason) as error:
            main([*arguments, *flags])
        assert "\n" not in str(error.value)

    refused("its folder does not exist", "--format", "torchscript", "--out", str(tmp_path / "none" / "m.pt"))
    # Without OpenVINO its absence is told.
    refused("must end in .xml|needs openvino", "--format", "openvino", "--out", str(tmp_path / "m.onnx"))
    refused("precision int8 is for openvino", "--format", "torchscript", "--out", out, "--precision", "int8")
    refused("--images gone.jpg: there is no such file", "--format", "torchscript", "--out", out, "--images", "gone.jpg")
    refused("give --weights, MODEL.WEIGHTS is empty", "--format", "torchscript", "--out", out, "MODEL.WEIGHTS", "")
    refused("MODEL.MASK_OM", "--format", "torchscript", "--out", out, "MODEL.MASK_OM", "False")
    # Weights of a backbone alone, and of a model of other classes.
    state = read_checkpoint(folder / "model_final.pth")["model"]
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    refused(
        "they do not fit the model: proposal_generator",
        "--weights",
        str(tmp_path / "backbone.pth"),
        "--format",
        "torchscript",
        "--out",
        out,
    )
    refused(
        "roi_heads.box_predictor.cls_score",
        *("--weights", str(folder / "model_final.pth"), "--format", "torchscript", "--out", out),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "7"),
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(r"pip install 'resnest_det\[export\]'", "--format", "onnx", "--out", str(tmp_path / "m.onnx"))
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.pth"]
