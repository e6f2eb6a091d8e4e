"""Weights of every layout into classifiers and detectors, and mismatches."""

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from resnest_det import UserError, create_model, load_weights
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.backbone.split_attention import Deformable
from resnest_det.backbone.variants import looks_like
from resnest_det.weights.names import from_own_names, to_own_names
from tests.helpers.networks import SMALL, assert_same, small_backbone
from tests.helpers.timm_reference import images, randomise


class Detector(nn.Module):
    """Named like a detector with a pyramid; what the backbone's loading has to know of one."""

    def __init__(self, seed=0, classes=3, **arguments):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = ResNeSt(**{**SMALL, **arguments})
        self.backbone.fpn_lateral2 = nn.Conv2d(32, 8, 1)
        self.roi_heads = nn.Linear(8, classes)
        randomise(self, seed)


def numpied(state):
    return {name: value.numpy() for name, value in state.items()}


def with_prefix(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "file_format, wrapper",
    [("pth", None), ("pth", "state_dict"), ("pth", "state_dict_ema"), ("pkl", None), ("pkl", "model"), ("safetensors", None)],
)
@pytest.mark.parametrize(
    "layout, prefix",
    [
        ("timm", ""),
        ("timm", "module."),
        ("detectron2", ""),
        ("detectron2", "backbone.bottom_up."),
        ("detectron2", "bottom_up."),
        ("mmdet", ""),
        ("mmdet", "backbone."),
    ],
)
def test_every_layout_and_wrapping(tmp_path, layout, prefix, file_format, wrapper):
    source = small_backbone(seed=1)
    state = with_prefix(prefix, from_own_names(source.state_dict(), layout))
    path = tmp_path / "weights"
    if file_format == "safetensors":
        save_file(state, path)
    elif file_format == "pkl":
        content = numpied(state)
        path.write_bytes(pickle.dumps({wrapper: content, "__author__": "x"} if wrapper else content, protocol=2))
    else:
        torch.save({wrapper: state, "epoch": 3, "arch": "resnest"} if wrapper else state, path)

    backbone, detector = small_backbone(), Detector()
    heads = {name: value.clone() for name, value in detector.state_dict().items() if "bottom_up" not in name}
    report = load_weights(backbone, path)
    assert report.layout == layout and not report.left and not report.fresh
    assert sorted(report.loaded) == sorted(backbone.state_dict())
    assert_same(backbone.state_dict(), source.state_dict())

    report = load_weights(detector, path)
    assert_same(detector.backbone.bottom_up.state_dict(), source.state_dict())
    assert report.fresh.keys() == heads.keys() and not report.left
    assert_same({name: detector.state_dict()[name] for name in heads}, heads)
    assert "freshly initialised: backbone.fpn_lateral2.weight" in str(report)


def test_whole_detector_and_its_backbone(tmp_path):
    source = Detector(seed=1)
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    torch.save({"model": {**source.state_dict(), **extra}, "iteration": 9}, tmp_path / "x.pth")
    detector = Detector()
    report = load_weights(detector, tmp_path / "x.pth")
    assert_same(detector.state_dict(), source.state_dict())
    assert report.left.keys() == extra.keys() and not report.fresh

    backbone = small_backbone()
    report = load_weights(backbone, tmp_path / "x.pth")
    assert_same(backbone.state_dict(), source.backbone.bottom_up.state_dict())
    assert report.left.keys() == {
        *extra,
        "backbone.fpn_lateral2.weight",
        "backbone.fpn_lateral2.bias",
        "roi_heads.weight",
        "roi_heads.bias",
    }


def test_detector_of_other_classes_is_refused_unless_asked_for(tmp_path):
    source, detector = Detector(seed=1, classes=80), Detector()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x.pth: .*roi_heads.weight \(80, 8\) in the file, \(3, 8\) in the model"):
        load_weights(detector, tmp_path / "x.pth")
    assert_same(detector.state_dict(), before)  # nothing is copied before everything fits

    report = load_weights(detector, tmp_path / "x.pth", allow_mismatch=True)
    assert len(report.mismatched) == 2 and "did not fit" in str(report)
    after = detector.state_dict()
    assert torch.equal(after["backbone.fpn_lateral2.weight"], source.backbone.fpn_lateral2.weight)
    assert torch.equal(after["roi_heads.weight"], before["roi_heads.weight"])


def test_missing_and_unexpected_parameters(tmp_path):
    state = small_backbone().state_dict()
    del state["res3.0.conv1.weight"]
    state["res3.0.conv9.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="res3.0.conv9.weight is not in the model, res3.0.conv1.weight is not in the file"):
        load_weights(small_backbone(), tmp_path / "x.pth")


def test_deformable_fixed_and_shorter_models_take_plain_weights(tmp_path):
    source = small_backbone(seed=1)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    deformable = ResNeSt(**SMALL, deform_on_per_stage=(False, True, True, True), deformable=Deformable(True, 2))
    report = load_weights(deformable, tmp_path / "x.pth")
    assert len(report.fresh) == 6 and all("conv2_offset" in name for name in report.fresh)
    assert deformable.res3[0].conv2_offset.weight.count_nonzero() == 0
    assert torch.equal(deformable.res3[0].conv2.conv.weight, source.res3[0].conv2.conv.weight)

    fixed = ResNeSt(**SMALL, norm="FrozenBN")
    report = load_weights(fixed, tmp_path / "x.pth")
    assert set(report.left.values()) == {"the model's norms do not count batches"}
    assert torch.equal(fixed.res5[0].conv3.norm.running_var, source.res5[0].conv3.norm.running_var)
    torch.save(fixed.state_dict(), tmp_path / "fixed.pth")
    assert not load_weights(small_backbone(), tmp_path / "fixed.pth").mismatched

    report = load_weights(ResNeSt(**SMALL, out_features=("res3", "res4")), tmp_path / "x.pth")
    assert report.left and set(report.left.values()) == {"the model ends before this stage"}


def test_plain_resnet_of_torchvision(tmp_path):
    reference = randomise(torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1])).eval()
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    model = ResNeSt((1, 2, 1, 1), radix=0, deep_stem=False, avd=False, avg_down=False).eval()
    report = load_weights(model, tmp_path / "resnet.pth")
    assert report.left.keys() == {"fc.weight", "fc.bias"}
    x = images(1)
    with torch.no_grad():
        expected = reference.layer4(
            reference.layer3(
                reference.layer2(reference.layer1(reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))))
            )
        )
        torch.testing.assert_close(model(x)["res5"], expected, rtol=1e-5, atol=1e-5)
    assert_same(from_own_names(to_own_names(reference.state_dict())[0], "timm"), reference.state_dict())


def test_detectron2_zoo_names_its_head_fc(tmp_path):
    state = {**small_backbone(seed=1).state_dict(), "stem.fc.weight": torch.zeros(5, 256), "stem.fc.bias": torch.zeros(5)}
    torch.save({"model": state}, tmp_path / "R-50.pkl")
    assert load_weights(Detector(), tmp_path / "R-50.pkl").left.keys() == {"stem.fc.weight", "stem.fc.bias"}


@pytest.mark.parametrize(
    "checkpoint, reason",
    [({"epoch": 3}, "no tensors by name"), ({"encoder.weight": torch.zeros(2)}, "no ResNeSt or ResNet in a known layout")],
)
def test_something_without_a_backbone(tmp_path, checkpoint, reason):
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth: .*{reason}"):
        load_weights(small_backbone(), tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["resnest14", "resnest50", "resnest101", "resnest50_fast_4s2x40d", "resnest50_fast_1s4x24d"])
def test_variant_is_recognised_by_its_shapes(name):
    with torch.device("meta"):
        state = create_model(name).state_dict()
    expected = [name] if name != "resnest50" else ["resnest50", "resnest50_fast_2s1x64d"]  # these differ in no parameter
    assert looks_like(state) == expected
    assert looks_like({key: value for key, value in state.items() if not key.startswith("res5")})[0] == name


def test_checkpoint_of_another_variant_says_which(tmp_path):
    torch.save(create_model("resnest14").state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="the file looks like resnest14, the model like resnest26"):
        create_model("resnest26", checkpoint_path=str(tmp_path / "x.pth"))
