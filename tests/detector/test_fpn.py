"""The pyramid's top blocks, against torchvision's."""

import pytest
import torch
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resnest_det.backbone.resnest import ResNeSt
from resnest_det.detector.fpn import FPN, ConvolutionTop
from resnest_det.errors import ArgumentError


@pytest.fixture
def bottom_up():
    torch.manual_seed(0)
    return ResNeSt(
        blocks=(1, 1, 1, 1), stem_width=4, bottleneck_channels=8, res2_out_channels=16, out_features=("res3", "res4", "res5")
    ).eval()


def test_p6_and_p7_from_res5_are_torchvisions(bottom_up):
    fpn = FPN(bottom_up, ("res3", "res4", "res5"), 24, top_block=ConvolutionTop(128, 24)).eval()
    reference = LastLevelP6P7(128, 24)
    reference.load_state_dict(fpn.top_block.state_dict())
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        levels, maps = fpn(images), bottom_up(images)
        expected, _ = reference([levels["p5"]], [maps["res5"]], ["p5"])
    assert {name: 128 // level.shape[-1] for name, level in levels.items()} == fpn.out_feature_strides
    assert fpn.out_feature_strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    torch.testing.assert_close([levels["p6"], levels["p7"]], expected[1:], rtol=0, atol=0)
    assert set(fpn.state_dict()) >= {"top_block.p6.weight", "top_block.p7.bias"}  # Detectron2's names


def test_one_level_above_by_default(bottom_up):
    fpn = FPN(bottom_up, ("res3", "res4", "res5"), 24).eval()
    with torch.no_grad():
        levels = fpn(torch.zeros(1, 3, 128, 128))
    assert list(levels) == ["p3", "p4", "p5", "p6"] and torch.equal(levels["p6"], levels["p5"][:, :, ::2, ::2])
    assert not any(isinstance(module, nn.Conv2d) for module in fpn.top_block.modules())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(in_features=("res2",)), r"in_features \['res2'\] is not supported; supported: some of res3"),
        (dict(in_features=("res3", "res5")), "do not double"),
        (dict(fuse_type="max"), "fuse_type 'max' is not supported"),
    ],
)
def test_arguments_are_named(bottom_up, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        FPN(bottom_up, **dict(in_features=("res3",), out_channels=8) | arguments)
