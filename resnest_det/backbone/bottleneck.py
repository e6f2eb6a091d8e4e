"""What ResNeSt's stages are made of: the stem, and the bottleneck with split attention (arXiv:2004.08955, sections 3 and 4.1).

With `radix=0` and without the other tweaks they are the plain ResNet's.
"""

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torchvision.ops import DropBlock2d, StochasticDepth

from resnest_det.backbone.layers import Conv2d, Norm, get_norm
from resnest_det.backbone.recomputation import offer
from resnest_det.backbone.split_attention import Deformable, SplitAttentionConv2d, make_conv


def _conv_norm_relu(in_channels: int, channels: int, kernel_size: int, *, norm: Norm, **arguments) -> Conv2d:
    return Conv2d(
        in_channels, channels, kernel_size, bias=False, norm=get_norm(norm, channels), activation=nn.ReLU(), **arguments
    )


class Stem(nn.Module):
    """Convolutions of stride 2, then max pooling of stride 2.

    Deep: three 3x3 convolutions of `width`, `width` and `2 * width` channels (section 4.1, from ResNet-D,
    arXiv:1812.01187). Otherwise: one 7x7 convolution of `2 * width` channels.

    Shapes: (N, in_channels, H, W) to (N, 2 * width, H / 4, W / 4).
    """

    stride = 4

    def __init__(self, in_channels: int, width: int, *, deep: bool = True, norm: Norm = "BN"):
        super().__init__()
        self.out_channels = 2 * width
        if deep:
            self.conv1_1 = _conv_norm_relu(in_channels, width, 3, stride=2, padding=1, norm=norm)
            self.conv1_2 = _conv_norm_relu(width, width, 3, padding=1, norm=norm)
            self.conv1_3 = _conv_norm_relu(width, 2 * width, 3, padding=1, norm=norm)
        else:
            self.conv1 = _conv_norm_relu(in_channels, 2 * width, 7, stride=2, padding=3, norm=norm)
        for conv in self.children():
            c2_msra_fill(conv)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def convolutions(self, x: Tensor) -> Tensor:
        """The stem up to the max pooling, at stride 2."""
        for name, conv in self.named_children():
            if name != "pool":
                x = conv(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.convolutions(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (split attention, deformable or plain) and 1x1 convolution beside a shortcut.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        width: channels between the 1x1 convolutions, over all groups.
        stride: of the block. With `avd` a 3x3 average pool takes it over from the 3x3 convolution, after it or, with
            `avd_first`, before it (section 4.1).
        dilation: of the 3x3 convolution.
        groups, radix: cardinality K and number of splits R; radix 0 is a plain convolution.
        reduction_factor: of the attention's hidden layer, see `SplitAttentionConv2d`.
        avg_down: the shortcut's stride is an average pool before its 1x1 convolution.
        avd_without_stride, pool_shortcut: of a block that has lost its stride to dilation, see `resnest.DilationStyle`.
        stride_in_1x1: the stride is the first 1x1 convolution's, as in the first ResNet models.
        deformable: the 3x3 convolution; None is plain.
        drop_path_rate: probability that an image skips the block in training (stochastic depth, arXiv:1603.09382).
        drop_block_size: side of the squares that DropBlock (arXiv:1810.12890) drops after each convolution; 0 for none. Its
            rate is 0 until `ResNeSt.set_drop_block` says otherwise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        radix: int = 2,
        reduction_factor: int = 4,
        norm: Norm = "BN",
        avd: bool = True,
        avd_first: bool = False,
        avg_down: bool = True,
        avd_without_stride: bool = False,
        pool_shortcut: bool = False,
        stride_in_1x1: bool = False,
        deformable: Deformable | None = None,
        drop_path_rate: float = 0.0,
        drop_block_size: int = 0,
    ):
        super().__init__()
        self.radix = radix
        self.shortcut_stride = stride if avg_down else 1
        self.pool_shortcut = pool_shortcut
        avd = avd and (stride > 1 or avd_without_stride)
        self.avd_stride = stride if avd else 0  # 0: there is no such pool
        self.avd_first = avd_first
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 and not avd else (1, 1 if avd else stride)

        self.shortcut = None
        if in_channels != out_channels or stride > 1:
            self.shortcut = Conv2d(
                in_channels, out_channels, 1, stride=1 if avg_down else stride, bias=False, norm=get_norm(norm, out_channels)
            )
        self.conv1 = _conv_norm_relu(in_channels, width, 1, stride=stride_1x1, norm=norm)
        self.conv2_offset = None
        if deformable is not None:
            # Not even the first offsets are learned from noise: DCN starts as the plain convolution.
            self.conv2_offset = Conv2d(
                width,
                deformable.offset_channels(3),
                3,
                stride=stride_3x3,
                padding=dilation,
                dilation=dilation,
                groups=deformable.groups,
            )
            nn.init.zeros_(self.conv2_offset.weight)
            nn.init.zeros_(self.conv2_offset.bias)
        if radix > 0:
            self.conv2 = SplitAttentionConv2d(
                width,
                width,
                stride=stride_3x3,
                dilation=dilation,
                groups=groups,
                radix=radix,
                reduction_factor=reduction_factor,
                norm=norm,
                deformable=deformable,
            )
        else:
            arguments = dict(
                kernel_size=3,
                stride=stride_3x3,
                padding=dilation,
                dilation=dilation,
                groups=groups,
                bias=False,
                norm=get_norm(norm, width),
                activation=nn.ReLU(),
            )
            self.conv2 = make_conv(width, width, deformable, **arguments)
            c2_msra_fill(self.conv2)
        self.conv3 = Conv2d(width, out_channels, 1, bias=False, norm=get_norm(norm, out_channels))
        self.drop_path = StochasticDepth(drop_path_rate, "row") if drop_path_rate else None
        self.drop_block = DropBlock2d(0.0, drop_block_size) if drop_block_size else None
        self.relu = nn.ReLU()
        for conv in (self.shortcut, self.conv1, self.conv3):
            if conv is not None:
                c2_msra_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        if self.drop_block is not None:
            out = self.drop_block(out)
        if self.avd_first and self.avd_stride > 0:
            out = _pooled(out, self.avd_stride)
        if self.conv2_offset is not None:
            out = self.conv2(out, self.conv2_offset(out))
        else:
            out = self.conv2(out)
        if self.drop_block is not None:
            out = self.drop_block(out)
        if not self.avd_first and self.avd_stride > 0:
            out = _pooled(out, self.avd_stride)
        out = self.conv3(out)
        if self.drop_block is not None:
            out = self.drop_block(out)
        if self.drop_path is not None:
            out = self.drop_path(out)

        if self.shortcut is not None:
            if self.shortcut_stride > 1:
                x = F.avg_pool2d(x, self.shortcut_stride, self.shortcut_stride, ceil_mode=True, count_include_pad=False)
            elif self.pool_shortcut:
                x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)
            x = self.shortcut(x)
        # Only in a folded copy may what a convolution gave be overwritten: hooks keep it.
        result = self.relu(out.add_(x) if self.relu.inplace else out + x)
        if not torch.jit.is_scripting():
            self._offer_sum(result, out, x)
        return result

    @torch.jit.unused  # TorchScript reads no lambdas
    def _offer_sum(self, result: Tensor, out: Tensor, x: Tensor) -> None:
        if self.drop_path is None:
            offer(result, lambda out, x: (out + x).relu_(), out, x)


def _pooled(x: Tensor, stride: int) -> Tensor:
    pooled = F.avg_pool2d(x, 3, stride, padding=1)
    if not torch.jit.is_scripting():
        _offer_pooled(pooled, x, stride)
    return pooled


@torch.jit.unused  # TorchScript reads no lambdas
def _offer_pooled(pooled: Tensor, x: Tensor, stride: int) -> None:
    offer(pooled, lambda x: F.avg_pool2d(x, 3, stride, padding=1), x)
