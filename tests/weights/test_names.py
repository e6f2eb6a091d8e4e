"""Parameter names of other libraries: there and back, and what they are."""

import pytest
import torch
from torch import nn

from resnest_det import UserError, create_model
from resnest_det.backbone.split_attention import Deformable
from resnest_det.weights.names import from_own_names, state_dict_of, to_own_names
from tests.helpers.networks import assert_same, small_backbone
from tests.helpers.timm_reference import images, timm_model


@pytest.mark.parametrize("layout", ["timm", "mmdet", "detectron2"])
@pytest.mark.parametrize("deformable", [False, True])
def test_there_and_back_is_bit_for_bit_the_same(layout, deformable):
    arguments = dict(deform_on_per_stage=(False, True, True, True), deformable=Deformable(True, 2)) if deformable else {}
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
    source = small_backbone(seed=1, deform_on_per_stage=(False, True, False, False), deformable=Deformable(True, 2))
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


def test_averaged_weights_come_before_the_others():
    state = {"a": torch.ones(1)}
    assert state_dict_of({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": state})[0]["a"] == 1
