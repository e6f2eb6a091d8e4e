"""Detectors trained here as torchvision's classes: the same detections, files that need nothing of this package, AP."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN, MaskRCNN

from resnest_det.configuration.data import build_train_loader, read_run_data
from resnest_det.configuration.model import assemble_model
from resnest_det.configuration.reading import load_config
from resnest_det.data.catalog import register_coco
from resnest_det.data.mapper import inference_sample
from resnest_det.data.shapes import THINGS, write_shapes
from resnest_det.errors import UserError
from resnest_det.integrations.torchvision_data import evaluate_torchvision, torchvision_batch
from resnest_det.integrations.torchvision_detector import build_torchvision, to_torchvision
from resnest_det.integrations.torchvision_parts import PixelTransform, resize_like_pillow
from tests.helpers import cases
from tests.helpers.configs import typed
from tests.helpers.datasets import noise
from tests.helpers.fill import fill

SIZES = {"INPUT.MIN_SIZE_TEST": 100, "INPUT.MAX_SIZE_TEST": 150}


def configuration(case: str, **keys):
    return load_config("Base-RCNN-FPN", typed(cases.BASE | cases.CASES[case] | SIZES | keys))


def trained(cfg, folder, class_names=None):
    """The built-in detector of a configuration, filled, and its checkpoint."""
    model = assemble_model(cfg)
    fill(model)
    path = folder / "model.pth"
    torch.save({"model": model.state_dict(), "trained_on": {"thing_classes": class_names}}, path)
    return model.eval(), str(path)


def assert_same(found: dict, expected: dict) -> None:
    assert len(found["boxes"]) == len(expected["boxes"]) > 3
    assert (found["boxes"] - expected["boxes"]).abs().max() < 0.01
    assert (found["scores"] - expected["scores"]).abs().max() < 1e-4
    assert torch.equal(found["labels"] - 1, expected["classes"])
    if "masks" in expected:
        different = (found["masks"][:, 0] >= 0.5) != expected["masks"]
        assert different.sum() <= 2  # a probability within rounding of one half


@pytest.mark.filterwarnings("ignore:.* always returns a .Losses, Detections. tuple in scripting")
@pytest.mark.parametrize(
    ("case", "keys"),
    [
        ("faster_frozenbn", {"INPUT.FORMAT": "BGR", "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5, "MODEL.RPN.CONV_DIMS": [-1, -1]}),
        ("mask_bn", {"INPUT.FORMAT": "RGB"}),
        ("mask_gn_radix1_agnostic_giou", {"MODEL.FPN.FUSE_TYPE": "sum", "MODEL.RPN.BBOX_REG_WEIGHTS": [2.0, 2.0, 1.0, 1.0]}),
        ("mask_plain_resnet", {}),
    ],
)
def test_detections_are_those_of_the_built_in_detector(case, keys, tmp_path):
    cfg = configuration(case, **keys)
    ours, path = trained(cfg, tmp_path)
    model = to_torchvision(cfg, path)
    assert type(model) is (MaskRCNN if cfg.MODEL.MASK_ON else FasterRCNN)
    scripted = torch.jit.script(model)
    for height, width in ((90, 130), (100, 100), (160, 90)):  # larger, as it is, smaller
        pixels = noise(height // 10, width // 10).repeat(10, 0).repeat(10, 1)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        record = {"file_name": str(tmp_path / "image.png"), "height": height, "width": width, "image_id": 1}
        sample = inference_sample(record, short_side=100, max_side=150, image_format=cfg.INPUT.FORMAT)
        image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            (expected,), (found,), (_, (again,)) = ours([sample]), model([image]), scripted([image])
        assert_same(found, expected)
        assert_same(again, expected)


def test_a_scripted_file_needs_only_torchvision(tmp_path):
    cfg = configuration("faster_frozenbn")
    _, path = trained(cfg, tmp_path, class_names=list("abcdef"))
    model = to_torchvision(cfg, path)
    torch.jit.script(model).save(str(tmp_path / "detector.pt"))
    image = torch.from_numpy(noise(100, 100)).permute(2, 0, 1) / 255
    expected = model([image])[0]
    torch.save(image, tmp_path / "image.pt")
    program = f"""
import sys, torch, torchvision
sys.modules["resnest_det"] = None
model = torch.jit.load("{tmp_path}/detector.pt")
torch.jit.optimized_execution(False).__enter__()
found = model([torch.load("{tmp_path}/image.pt")])[1][0]
print(model.classes[1], len(found["boxes"]), round(found["scores"][0].item(), 3))
"""
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.split() == ["a", str(len(expected["boxes"])), str(round(expected["scores"][0].item(), 3))], said.stderr


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}, "MODEL.ROI_HEADS.NAME"),
        ({"MODEL.FPN.FUSE_TYPE": "avg"}, "MODEL.FPN.FUSE_TYPE 'avg' cannot be converted to torchvision; supported: 'sum'"),
        ({"MODEL.RPN.CONV_DIMS": [16]}, r"MODEL.RPN.CONV_DIMS \[16\]"),
        ({"MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5"], "MODEL.ANCHOR_GENERATOR.SIZES": [[32]]}, "MODEL.RPN.IN_FEATURES"),
    ],
)
def test_what_torchvision_lacks_is_named(keys, message):
    with pytest.raises(UserError, match=message):
        build_torchvision(configuration("faster_frozenbn", **keys))


def test_a_backbone_is_no_detector(tmp_path):
    cfg = configuration("faster_frozenbn")
    model, _ = trained(cfg, tmp_path)
    torch.save(model.backbone.bottom_up.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="only a whole detector can be converted"):
        to_torchvision(cfg, str(tmp_path / "backbone.pth"))


@pytest.mark.parametrize("size", [(90, 131), (40, 60), (64, 80), (7, 3), (64, 33)])
def test_resizing_is_pillows_to_the_bit(size):
    pixels = noise(64, 80)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    resized = resize_like_pillow(torch.from_numpy(pixels).permute(2, 0, 1).float(), list(size))
    assert np.array_equal(resized.permute(1, 2, 0).numpy(), expected)


def test_targets_are_resized_with_their_image():
    transform = PixelTransform([32], 64, [0.0] * 3, [1.0] * 3).train()
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[0, 16:48, 24:48] = 1
    images, targets = transform([torch.rand(3, 64, 96)], [{"boxes": torch.tensor([[24.0, 16, 48, 48]]), "masks": masks}])
    assert images.image_sizes == [(32, 48)] and targets[0]["boxes"].tolist() == [[12, 8, 24, 24]]
    assert targets[0]["masks"].shape == (1, 32, 48) and targets[0]["masks"][0, 8:24, 12:24].all()
    assert targets[0]["masks"].sum() == 16 * 12


def test_a_step_of_training_and_the_figures(tmp_path, own_registry):
    write_shapes(tmp_path / "shapes", {"train": 4})
    register_coco("few", f"{tmp_path}/shapes/annotations/instances_train.json", f"{tmp_path}/shapes/train")
    keys = {"DATASETS.TRAIN": ("few",), "DATASETS.TEST": ("few",), "INPUT.MASK_FORMAT": "bitmask"}
    keys |= {"SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0, "MODEL.DEVICE": "cpu"}
    cfg = load_config("mask_rcnn_ResNeSt14_FPN_shapes", typed(keys))
    torch.manual_seed(0)
    model = build_torchvision(cfg)
    images, targets = torchvision_batch(next(build_train_loader(cfg, read_run_data(cfg, train=True).train, seed=0)))
    assert 0 <= images[0].min() and 0.5 < images[0].max() <= 1
    assert targets[0]["labels"].min() >= 1 and targets[0]["labels"].max() <= len(THINGS)
    losses = model(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    assert all(value.grad is not None for value in model.parameters())

    figures = evaluate_torchvision(model, "few")
    assert model.training and set(figures) == {"bbox", "segm"} and 0 <= figures["bbox"]["AP50"] < 50
