"""Small networks whose weights and norms are all different."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from resnest_det.backbone.resnest import ResNeSt
from tests.helpers.timm_reference import randomise

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
SMALL = dict(blocks=(1, 1, 1, 1), stem_width=8, bottleneck_channels=16, res2_out_channels=32)


def small_backbone(seed: int = 0, **arguments) -> ResNeSt:
    """A ResNeSt of one narrow block in each stage."""
    return randomise(ResNeSt(**{**SMALL, **arguments}), seed)


def assert_same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names, types and bits."""
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name


def randomise_norms(model):
    """Statistics and affine parameters that are all different, so that none can be left out or exchanged unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                with torch.no_grad():
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
