"""resnest_det.backbone.folding."""

import copy

import pytest
import torch
from torch import nn

from resnest_det.backbone.folding import fold_norms
from resnest_det.backbone.layers import Conv2d
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.backbone.split_attention import Deformable
from tests.helpers.networks import BATCH_NORMS, randomise_norms


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": "BN"},
        {"norm": "FrozenBN", "radix": 4, "groups": 2, "bottleneck_width": 40, "avd_first": True},
        {"norm": "BN", "radix": 0, "avd": False, "deep_stem": False, "freeze_at": 2},
        {"norm": "BN", "deform_on_per_stage": (False, True, True, True), "deformable": Deformable(True)},
        {"norm": "GN"},
    ],
    ids=["resnest", "frozen-4s2x40d", "resnet", "deformable", "group-norm"],
)
def test_folded_network_gives_the_same_maps(arguments):
    torch.manual_seed(0)
    model = ResNeSt((1, 1, 1, 1), **arguments)
    randomise_norms(model)
    before = copy.deepcopy(model.state_dict())
    folded = fold_norms(model)

    assert model.training and not folded.training
    assert not any(isinstance(module, BATCH_NORMS) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected, maps = model.eval()(images), folded(images)
    for name in expected:
        assert (maps[name] - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


def test_norm_without_running_statistics_stays():
    conv = Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4, track_running_stats=False))
    folded, images = fold_norms(conv), torch.rand(2, 3, 8, 8)
    assert folded.norm is not None
    torch.testing.assert_close(folded(images), conv.eval()(images))
