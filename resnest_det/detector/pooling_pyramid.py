"""What gives each pixel of a map a view of its surroundings: atrous and pooling pyramids (DeepLabV3, PSPNet)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d, get_norm, normed_alone
from resnest_det.errors import ArgumentError, UserError


def conv_norm_relu(in_channels: int, channels: int, kernel_size: int, norm: str, dilation: int = 1) -> Conv2d:
    """A convolution that keeps the size of the map; without a norm it has a bias."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        bias=not norm,
        norm=get_norm(norm, channels),
        activation=F.relu,
    )
    c2_xavier_fill(conv)
    return conv


class DepthwiseSeparableConv2d(nn.Module):
    """A convolution of each channel and a 1x1 convolution over them, each with norm and ReLU (arXiv:1704.04861, section 3.1)."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, norm: str, dilation: int = 1):
        super().__init__()
        arguments = dict(bias=not norm, activation=F.relu)
        self.depthwise = Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=in_channels,
            norm=get_norm(norm, in_channels),
            **arguments,
        )
        self.pointwise = Conv2d(in_channels, channels, 1, norm=get_norm(norm, channels), **arguments)
        c2_msra_fill(self.depthwise)
        c2_msra_fill(self.pointwise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W)."""
        return self.pointwise(self.depthwise(x))


class WindowPool(nn.Module):
    """The mean over each window of a size, without padding; a smaller map is one window."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H - height + 1, W - width + 1)."""
        return F.avg_pool2d(x, (min(self.size[0], x.shape[2]), min(self.size[1], x.shape[3])), stride=1)


class PooledConv(nn.Sequential):
    """A pool, a 1x1 convolution with norm and ReLU, and back to the size of the map.

    Args:
        pool: of the map; `0` among the children, the convolution is `1`.
        align_corners: of the interpolation.
    """

    def __init__(self, pool: nn.Module, in_channels: int, channels: int, norm: str, align_corners: bool):
        super().__init__(pool, conv_norm_relu(in_channels, channels, 1, norm))
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W).

        Raises:
            UserError: batch norm is trained on one value a channel.
        """
        pooled = self[0](x)
        if self.training and pooled.shape[0] * pooled.shape[2] * pooled.shape[3] == 1 and normed_alone(self[1].norm):
            raise UserError(
                "a batch of one image cannot train the batch norm after the pooling of a whole image, which has one value per "
                'channel and image: use batches of at least two (drop_last=True where the last may have one), norm="GN" in the '
                "head, or call model.eval() first"
            )
        return F.interpolate(self[1](pooled), size=x.shape[-2:], mode="bilinear", align_corners=self.align_corners)


@dataclass(frozen=True)
class AsppSettings:
    """What makes an `ASPP`; the defaults are Detectron2's DeepLab.

    Attributes:
        channels: of each branch and of the result.
        dilations: of the 3x3 convolutions.
        dropout: probability, of the result.
        drop_channels: dropout is of whole channels, not of single values.
        depthwise_separable: the 3x3 convolutions are, see `DepthwiseSeparableConv2d`.
        pool_size: (height, width) of the pooled branch's windows; None pools the whole map.
        pool_norm: the pooled branch has a norm.
        project_kernel: side of the convolution over all branches.
    """

    channels: int = 256
    dilations: Sequence[int] = (6, 12, 18)
    dropout: float = 0.1
    drop_channels: bool = False
    depthwise_separable: bool = False
    pool_size: tuple[int, int] | None = None
    pool_norm: bool = False
    project_kernel: int = 1

    def __post_init__(self):
        if not self.dilations or not all(isinstance(each, int) and each >= 1 for each in self.dilations):
            raise ArgumentError("dilations", f"{list(self.dilations)} is not supported; supported: whole numbers from 1 on")
        if not 0 <= self.dropout < 1:
            raise ArgumentError("dropout", f"{self.dropout} is not supported; supported: 0 to below 1")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabV3, arXiv:1706.05587, section 3.3).

    Branches side by side, a 1x1 convolution, a 3x3 convolution of each dilation and the pooled map, and a convolution over all of
    them. Parameters have Detectron2's names: `convs.0` ... `convs.3`, `convs.4.1`, `project`.

    Args:
        in_channels: of the map.
        settings: of the pyramid.
        norm: see `get_norm`; without one the convolutions have a bias.
        align_corners: of the interpolation in the pooled branch.
    """

    def __init__(self, in_channels: int, settings: AsppSettings, norm: str, align_corners: bool = False):
        super().__init__()
        channels = settings.channels
        separable = DepthwiseSeparableConv2d if settings.depthwise_separable else conv_norm_relu
        pool = nn.AdaptiveAvgPool2d(1) if settings.pool_size is None else WindowPool(settings.pool_size)
        self.convs = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1, norm),
                *(separable(in_channels, channels, 3, norm, dilation) for dilation in settings.dilations),
                PooledConv(pool, in_channels, channels, norm if settings.pool_norm else "", align_corners),
            ]
        )
        self.project = conv_norm_relu(len(self.convs) * channels, channels, settings.project_kernel, norm)
        self.dropout = (nn.Dropout2d if settings.drop_channels else nn.Dropout)(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W)."""
        return self.dropout(self.project(torch.cat([conv(x) for conv in self.convs], dim=1)))


class PyramidPooling(nn.Module):
    """The map beside its means over grids (PSPNet, arXiv:1612.01105, section 3.2), and a 3x3 convolution over all of them.

    Args:
        in_channels: of the map.
        channels: of each pooled branch and of the result.
        grids: cells along a side.
        norm: see `get_norm`.
        align_corners: of the interpolation of the means.
    """

    def __init__(self, in_channels: int, channels: int, grids: Sequence[int], norm: str, align_corners: bool = False):
        super().__init__()
        self.grids = nn.ModuleList(
            PooledConv(nn.AdaptiveAvgPool2d(grid), in_channels, channels, norm, align_corners) for grid in grids
        )
        self.project = conv_norm_relu(in_channels + len(grids) * channels, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W)."""
        return self.project(torch.cat([x, *(grid(x) for grid in self.grids)], dim=1))
