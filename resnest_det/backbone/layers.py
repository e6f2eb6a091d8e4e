"""Convolution with its norm, the choice of norm, and freezing: what every network here is made of."""

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torchvision.ops import FrozenBatchNorm2d

from resnest_det.backbone.recomputation import normed
from resnest_det.distributed import get_world_size
from resnest_det.errors import UserError

logger = logging.getLogger(__name__)

NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN")
Norm = str | Callable[[int], nn.Module | None]  # a name of these, or a function from channels to a module
GROUP_NORM_GROUPS = 32  # "Group Normalization" (arXiv:1803.08494), section 4


def get_norm(norm: Norm, channels: int) -> nn.Module | None:
    """The norm layer that a configuration names.

    Args:
        norm: "" (none), "BN", "SyncBN" (over all processes), "FrozenBN" (fixed statistics and affine), "GN" (32 groups);
            or a function that makes the layer for a number of channels.
        channels: channels of the map that is normalised.

    Raises:
        UserError: the name is unknown, or group norm does not divide the channels.
    """
    if callable(norm):
        return norm(channels)
    if norm == "":
        return None
    if norm == "BN":
        return nn.BatchNorm2d(channels)
    if norm == "SyncBN":
        return _sync_batch_norm(channels)
    if norm == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if norm == "GN":
        if channels % GROUP_NORM_GROUPS:
            raise UserError(f"GN needs channels divisible by {GROUP_NORM_GROUPS}, got {channels}")
        return GroupNorm(GROUP_NORM_GROUPS, channels)
    raise UserError(f"unknown norm {norm!r}; supported: {', '.join(repr(name) for name in NORMS)}")


_sync_bn_notice_logged = False


def _sync_batch_norm(channels: int) -> nn.Module:
    global _sync_bn_notice_logged
    if get_world_size() > 1:
        # torch's own works, and lets itself be wrapped for distributed training, on accelerators only.
        return GlooSyncBatchNorm2d(channels) if dist.get_backend() == "gloo" else nn.SyncBatchNorm(channels)
    if not _sync_bn_notice_logged:
        logger.info("one process: SyncBN is ordinary batch norm here (same parameters, statistics of this process)")
        _sync_bn_notice_logged = True
    return nn.BatchNorm2d(channels)


class GlooSyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on CPUs.

    The statistics come from two differentiable all-reduces: the mean first and then the squared distances from it, which
    loses no precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or get_world_size() == 1:
            return super().forward(x)
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = all_reduce(torch.cat([x.sum((0, 2, 3)), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class GroupNorm(nn.GroupNorm):
    """Group norm without a look at how many values it has, which no export can take of an unknown number of regions."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)


class Conv2d(nn.Conv2d):
    """2D convolution followed by an optional norm and activation.

    The norm is a child module named `norm`, so that parameters are called `conv.weight`, `conv.norm.weight` as in Detectron2.
    """

    def __init__(self, *args, norm: nn.Module | None = None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.finished(self._conv_forward(x, self.weight, self.bias))  # scripting knows no `super().forward`

    def finished(self, x: Tensor) -> Tensor:
        """What follows the convolution itself: norm and activation."""
        if not torch.jit.is_scripting():
            return normed(x, self.norm, self.activation)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def normed_alone(norm: nn.Module | None) -> bool:
    """Whether this is a batch norm in training over the values of this process alone, of which it needs two in each channel."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.training:
        return False
    return type(norm) is nn.BatchNorm2d or get_world_size() == 1  # others share their statistics between processes


def freeze(module: nn.Module) -> nn.Module:
    """Stop training `module`: its parameters take no gradient and every batch norm in it becomes a fixed one.

    Returns the module to use in its place (another one when `module` itself is a batch norm).
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return _fix_batch_norms(module)


def _fix_batch_norms(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        fixed = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        fixed.load_state_dict(module.state_dict(), strict=False)
        return fixed.to(module.running_mean)  # its device and, where the model was cast, its dtype
    for name, child in module.named_children():
        replacement = _fix_batch_norms(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
