"""Batch norm folded into the convolution before it: the same function with fewer operations, for inference."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from resnest_det.backbone.split_attention import SplitAttentionConv2d


def fold_norms(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference, in which every batch norm is part of the convolution before it.

    With running statistics mean and var, `weight * (conv(x) - mean) / sqrt(var + eps) + bias` is one convolution with
    scaled weights and another bias. Batch norms of the module itself and frozen ones are folded; group norm, which has no
    fixed statistics, stays. The copy is in evaluation mode, its parameters take no gradient; `model` is left as it is. In the
    copy a ReLU overwrites what it is given, so that hooks which keep outputs belong on `model`.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(folded.modules()):
        # Detectron2's convolutions hold their norm in the same way.
        if isinstance(module, nn.Conv2d) and _is_foldable(getattr(module, "norm", None)):
            _fold(module, module.norm)
            module.norm = None
        elif isinstance(module, nn.ReLU):
            module.inplace = True  # and with it the sum at the end of a block: a third of the memory's traffic less
        elif isinstance(module, SplitAttentionConv2d):
            for conv, norm in (("conv", "bn0"), ("fc1", "bn1")):
                if _is_foldable(getattr(module, norm)):
                    _fold(getattr(module, conv), getattr(module, norm))
                    setattr(module, norm, nn.Identity())
    return folded


def _is_foldable(norm: nn.Module | None) -> bool:
    # Detectron2 has a class FrozenBatchNorm2d of its own, with the same attributes.
    is_batch_norm = isinstance(norm, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)) or (
        type(norm).__name__ == "FrozenBatchNorm2d"
    )
    return is_batch_norm and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
