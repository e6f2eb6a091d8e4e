"""Weights of every layout into classifiers and detectors, mismatches, and translation there and back."""

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from resnest_det import UserError, create_model, load_weights
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.backbone.variants import looks_like
from resnest_det.configuration.weights import check_input_matches
from resnest_det.weights.names import from_own_names, state_dict_of, to_own_names
from tests.backbone.timm_reference import images, randomise, timm_model

SMALL = dict(blocks=(1, 1, 1, 1), stem_width=8, bottleneck_channels=16, res2_out_channels=32)


def small_backbone(seed=0, **arguments):
    return randomise(ResNeSt(**{**SMALL, **arguments}), seed)


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


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name


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
    deformable = ResNeSt(**SMALL, deform_on_per_stage=(False, True, True, True), deform_modulated=True, deform_groups=2)
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


@pytest.mark.parametrize("layout", ["timm", "mmdet", "detectron2"])
@pytest.mark.parametrize("deformable", [False, True])
def test_there_and_back_is_bit_for_bit_the_same(layout, deformable):
    arguments = dict(deform_on_per_stage=(False, True, True, True), deform_modulated=True, deform_groups=2) if deformable else {}
    head = {"linear.weight": torch.rand(5, 256), "linear.bias": torch.rand(5)}
    source = {**small_backbone(seed=1, **arguments).state_dict(), **head}
    source["stem.conv1_1.norm.num_batches_tracked"].fill_(12345)
    translated = from_own_names(source, layout)
    back, origin, recognised, prefix = to_own_names(translated)
    assert (recognised, prefix) == (layout, "") and set(origin.values()) == set(translated)
    assert_same(back, source)
    if layout == "timm" and not deformable:
        assert "conv1.0.weight" in translated and "bn1.running_mean" in translated and "fc.weight" in translated
    if layout == "mmdet":
        assert ("layer2.0.conv2.conv.conv_offset.weight" in translated) == deformable


def test_mmdetections_names_are_these():
    # As `ResNeSt` of MMDetection 3.3 builds its stem, blocks and shortcuts (mmdet/models/backbones/resnest.py, resnet.py).
    own = [
        "stem.conv1_1.weight",
        "stem.conv1_1.norm.bias",
        "stem.conv1_2.weight",
        "stem.conv1_2.norm.bias",
        "stem.conv1_3.weight",
        "stem.conv1_3.norm.bias",
        "res3.1.conv1.weight",
        "res3.1.conv1.norm.bias",
        "res3.1.conv2.conv.weight",
        "res3.1.conv2.bn0.bias",
        "res3.1.conv2.fc1.bias",
        "res3.1.conv2.bn1.bias",
        "res3.1.conv2.fc2.bias",
        "res3.1.conv3.weight",
        "res3.1.conv3.norm.bias",
        "res2.0.shortcut.weight",
        "res2.0.shortcut.norm.bias",
        "res5.0.shortcut.norm.running_var",
    ]
    theirs = [
        "stem.0.weight",
        "stem.1.bias",
        "stem.3.weight",
        "stem.4.bias",
        "stem.6.weight",
        "stem.7.bias",
        "layer2.1.conv1.weight",
        "layer2.1.bn1.bias",
        "layer2.1.conv2.conv.weight",
        "layer2.1.conv2.bn0.bias",
        "layer2.1.conv2.fc1.bias",
        "layer2.1.conv2.bn1.bias",
        "layer2.1.conv2.fc2.bias",
        "layer2.1.conv3.weight",
        "layer2.1.bn3.bias",
        "layer1.0.downsample.1.weight",
        "layer1.0.downsample.2.bias",
        "layer4.0.downsample.2.running_var",
    ]
    state = {name: torch.tensor(index) for index, name in enumerate(own)}
    assert from_own_names(state, "mmdet") == dict(zip(theirs, state.values()))
    assert to_own_names(dict(zip(theirs, state.values())))[0] == state

    # The norms of blocks are called after their kind, those of stem and shortcut by their place.
    del state["res5.0.shortcut.norm.running_var"], theirs[-1]
    theirs = [name.replace(".bn", ".gn") for name in theirs]
    assert from_own_names(state, "mmdet") == dict(zip(theirs, state.values()))
    assert to_own_names(dict(zip(theirs, state.values())))[0] == state


def test_grouped_offsets_compute_the_same_as_mmdetections_dense_ones():
    source = small_backbone(seed=1, deform_on_per_stage=(False, True, False, False), deform_modulated=True, deform_groups=2)
    offset = source.res3[0].conv2_offset
    dense = from_own_names(source.state_dict(), "mmdet")["layer2.0.conv2.conv.conv_offset.weight"]
    x = images(1, 8, channels=dense.shape[1])
    torch.testing.assert_close(nn.functional.conv2d(x, dense, offset.bias, padding=1), offset(x), rtol=1e-5, atol=1e-5)

    state = from_own_names(source.state_dict(), "mmdet")
    state["layer2.0.conv2.conv.conv_offset.weight"] = torch.rand_like(dense)
    with pytest.raises(UserError, match="conv_offset.weight: a deformable group computes its offsets"):
        to_own_names(state)


def test_timms_own_names_are_these():
    reference = timm_model("resnest14")
    own, _, layout, _ = to_own_names(reference.state_dict())
    assert layout == "timm"
    assert_same(from_own_names(own, "timm"), reference.state_dict())
    assert own.keys() == create_model("resnest14").state_dict().keys()


@pytest.mark.parametrize(
    "checkpoint, reason",
    [({"epoch": 3}, "no tensors by name"), ({"encoder.weight": torch.zeros(2)}, "no ResNeSt or ResNet in a known layout")],
)
def test_something_without_a_backbone(tmp_path, checkpoint, reason):
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth: .*{reason}"):
        load_weights(small_backbone(), tmp_path / "x.pth")


def test_averaged_weights_come_before_the_others():
    state = {"a": torch.ones(1)}
    assert state_dict_of({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": state})["a"] == 1


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


def test_input_that_does_not_fit_the_weights():
    mean, std = [123.68, 116.779, 103.939], [58.393, 57.12, 57.375]  # the published recipes'
    assert check_input_matches(mean, std, "RGB", "resnest://resnest50") == []
    bgr = check_input_matches(mean[::-1], [1.0, 1.0, 1.0], "BGR", "resnest50.pth")
    assert len(bgr) == 3
    assert "MODEL.PIXEL_MEAN" in bgr[0] and "123.675, 116.280, 103.530" in bgr[0]
    assert "MODEL.PIXEL_STD" in bgr[1] and "58.395" in bgr[1]
    assert "INPUT.FORMAT is BGR" in bgr[2]
    assert check_input_matches(mean[::-1], [1.0, 1.0, 1.0], "BGR", "") == []
    assert check_input_matches(mean[::-1], [1.0] * 3, "BGR", "detectron2://ImageNetPretrained/MSRA/R-50.pkl") == []
