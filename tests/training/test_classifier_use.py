"""What was trained is used: in a detector, in timm, exported; and the recipe of ImageNet from its start to there."""

import os
import signal
import time

import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from resnest_det import create_model
from resnest_det.commands import classify, convert_weights, export_model
from resnest_det.commands.train_classifier import main
from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.published import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.class_data import tiny_classifier, write_class_folders
from tests.helpers.commands import start_training
from tests.helpers.tiny_run import losses_of, read_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of resnest14 with two classes."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_classifier(folder)
    keys = ["MODEL.WIDTH", "1.0", "TRAINING.EPOCHS", "1", "TRAINING.EMA", "0.5", "TRAINING.EVAL_EPOCHS", "0"]
    main(["--config-file", config, *keys])
    return folder / "out" / "model_final.pth"


def logits_of(checkpoint, images):
    model = create_model("resnest14", num_classes=2, checkpoint_path=checkpoint).eval()
    with torch.no_grad():
        return model(images)


def test_timm_computes_the_same_with_it(trained, tmp_path):
    images = torch.rand(2, 3, 64, 64)
    out = tmp_path / "timm.pth"
    convert_weights.main([str(trained), str(out), "--to", "timm"])
    model = timm.create_model("resnest14d", num_classes=2)
    model.load_state_dict(read_checkpoint(str(out)))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), logits_of(trained, images), atol=1e-5, rtol=1e-5)


def test_a_detector_begins_from_it(trained):
    keys = ["MODEL.RESNETS.DEPTH", "14", "MODEL.WEIGHTS", str(trained), "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN"]
    cfg = load_config("mask_rcnn_ResNeSt50_FPN", keys)
    detector = build_model(cfg)
    load_initial_weights(cfg, detector)
    classifier = create_model("resnest14", num_classes=2, checkpoint_path=trained)
    own = detector.backbone.bottom_up.state_dict()  # frozen norms have buffers, no parameters
    for name, value in classifier.named_parameters():
        assert name.startswith("linear.") or torch.equal(own[name], value), name


def test_its_checkpoint_alone_names_what_is_in_an_image(trained, capsys):
    image = trained.parents[1] / "images" / "val" / "red" / "0.png"
    classify.main([str(image), "--checkpoint", str(trained)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(image) and {line.split()[-1] for line in lines[1:]} == {"green", "red"}
    # As its own evaluation sees it: resized and normalised, by the averaged parameters.
    shares = {line.split()[-1]: float(line.split()[0]) for line in lines[1:]}
    transform = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(32), transforms.PILToTensor()])
    with Image.open(image) as picture:
        pixels = transform(picture) / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    expected = logits_of(trained, ((pixels - mean) / std)[None])[0].softmax(0)
    assert shares["green"] == pytest.approx(100 * float(expected[0]), abs=0.06)


@pytest.mark.extras
def test_it_is_exported(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "model.onnx"
    export_model.main(
        ["--model", "resnest14", "--num-classes", "2", "--checkpoint", str(trained), "--format", "onnx", "--out", str(out)]
    )
    images = torch.rand(2, 3, 64, 64)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"data": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits_of(trained, images), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_recipe_of_resnest50_from_its_start_to_a_detector(tmp_path, processes):
    """Two epochs; killed in the second, resumed, evaluated, loaded into Mask R-CNN, and exported."""
    images = write_class_folders(tmp_path / "images", {"train": 4, "val": 2}, ("blue", "green", "red"), side=104)
    out = tmp_path / "out"
    keys = ["TRAINING.EPOCHS", "2", "TRAINING.BATCH_SIZE", str(4 // processes), "DATA.CROP_SIZE", "96", "TRAINING.WORKERS", "0"]
    keys += ["OPTIMIZER.WARMUP_EPOCHS", "1.0", "OUTPUT_DIR", str(out)]
    command = ["--config-file", "imagenet/resnest50", "--train-on", str(images), "--num-processes", str(processes)]
    first = start_training(*command, *keys, tool="train_classifier")
    deadline = time.monotonic() + 1500
    while time.monotonic() < deadline and not ((out / "metrics.json").exists() and len(losses_of(out)) >= 4):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = losses_of(out)
    main([*command, "--resume", *keys])
    after = losses_of(out)
    assert list(after) == list(range(6)) and {step: after[step] for step in before if step < 3} == {
        step: before[step] for step in before if step < 3
    }
    # What was done again after the checkpoint of the first epoch gave the same losses.
    again = [step for step in before if step >= 3]
    assert again and all(after[step] == before[step] for step in again)
    figures = [line["classification/top1"] for line in read_metrics(out) if "classification/top1" in line]
    assert len(figures) == 2 and (out / "model_best.pth").exists()
    cfg = load_config("mask_rcnn_ResNeSt50_FPN", ["MODEL.WEIGHTS", str(out / "model_best.pth"), "MODEL.DEVICE", "cpu"])
    detector = build_model(cfg)
    load_initial_weights(cfg, detector)
    saved = read_checkpoint(str(out / "model_best.pth"))["model"]
    assert torch.equal(detector.backbone.bottom_up.res5[2].conv3.weight, saved["res5.2.conv3.weight"])
    exported = tmp_path / "model.pt"
    given = ["--model", "resnest50", "--num-classes", "3", "--checkpoint", str(out / "model_best.pth")]
    export_model.main([*given, "--format", "torchscript", "--out", str(exported)])
    pixels = torch.rand(1, 3, 64, 96)
    expected = create_model("resnest50", num_classes=3, checkpoint_path=out / "model_best.pth").eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported)(pixels), expected(pixels), atol=1e-4, rtol=1e-3)
