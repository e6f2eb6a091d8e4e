"""The split-attention convolution of ResNeSt (arXiv:2004.08955, section 3), plain and deformable."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from resnest_det.backbone.layers import Conv2d, Norm, get_norm
from resnest_det.backbone.recomputation import normed, offer

MIN_ATTENTION_CHANNELS = 32  # of the attention's hidden layer, however much it is reduced


@dataclass(frozen=True)
class Deformable:
    """How a convolution is deformable.

    Args:
        modulated: DCNv2 (arXiv:1811.11168), which weights its sampling points, rather than DCN (arXiv:1703.06211).
        groups: parts of the channels that have offsets of their own.
    """

    modulated: bool = True
    groups: int = 1

    def offset_channels(self, kernel_size: int) -> int:
        """Channels of the map of offsets that `DeformConv2d` takes."""
        return (3 if self.modulated else 2) * kernel_size * kernel_size * self.groups


class DeformConv2d(Conv2d):
    """Convolution that samples at learned offsets (DCN, arXiv:1703.06211; DCNv2, arXiv:1811.11168).

    The offsets come from outside as a map with 2 (plain) or 3 (modulated) values per sampling point and deformable group.
    Of a modulated map two thirds are offsets, (y, x) interleaved, and the last third, through a sigmoid, the modulation.
    """

    def __init__(self, *args, modulated: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.modulated = modulated

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        # In the precision of its weights: on a CPU the operator has no other than single and double.
        x, offset = x.to(self.weight.dtype), offset.to(self.weight.dtype)
        mask: Tensor | None = None
        if self.modulated:
            points = offset.shape[1] // 3
            mask = offset[:, 2 * points :].sigmoid()
            offset = offset[:, : 2 * points]
        x = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        return self.finished(x)


def make_conv(in_channels: int, channels: int, deformable: Deformable | None, **arguments) -> Conv2d:
    """A `DeformConv2d`, or where `deformable` is None a `Conv2d`."""
    if deformable is None:
        return Conv2d(in_channels, channels, **arguments)
    return DeformConv2d(in_channels, channels, modulated=deformable.modulated, **arguments)


class SplitAttentionConv2d(nn.Module):
    """3x3 convolution into `radix` splits of every cardinal group, added up with attention weights.

    The splits of a group are pooled together into a channel descriptor (equation 1); two 1x1 convolutions turn it into
    a weight for each channel of each split, normalised over the splits by a softmax (equation 2; by a sigmoid where
    there is only one); the output is the weighted sum of the splits.

    Args:
        in_channels, channels: channels of the input and of the output.
        stride, dilation: of the 3x3 convolution.
        groups: the cardinality K.
        radix: the number of splits R, at least 1.
        reduction_factor: the attention's hidden layer has in_channels * radix / reduction_factor channels.
        norm: see `get_norm`.
        deformable: None for a plain convolution; otherwise `forward` takes the map of offsets too.

    Shapes: (N, in_channels, H, W) to (N, channels, H / stride, W / stride).
    """

    deformable: Final[bool]  # scripting compiles only what it decides for

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        radix: int = 2,
        reduction_factor: int = 4,
        norm: Norm = "BN",
        deformable: Deformable | None = None,
    ):
        super().__init__()
        self.channels = channels
        self.radix = radix
        self.deformable = deformable is not None
        self.cardinality = groups
        attention_channels = max(in_channels * radix // reduction_factor, MIN_ATTENTION_CHANNELS)
        conv_arguments = dict(
            kernel_size=3, stride=stride, padding=dilation, dilation=dilation, groups=groups * radix, bias=False
        )
        self.conv = make_conv(in_channels, channels * radix, deformable, **conv_arguments)
        self.bn0 = get_norm(norm, channels * radix) or nn.Identity()
        self.fc1 = Conv2d(channels, attention_channels, 1, groups=groups)
        self.bn1 = get_norm(norm, attention_channels) or nn.Identity()
        if isinstance(self.bn1, nn.GroupNorm):
            # Of one value a channel, 32 groups of one channel each would leave zeros: the whole layer is one group.
            self.bn1 = nn.GroupNorm(1, attention_channels)
        self.fc2 = Conv2d(attention_channels, channels * radix, 1, groups=groups)
        self.relu0, self.relu1 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        if self.deformable:
            assert offset is not None
            x = self.conv(x, offset)
        else:
            x = self.conv(x)
        x = self.relu0(self.bn0(x)) if torch.jit.is_scripting() else normed(x, self.bn0, self.relu0)
        splits = x.chunk(self.radix, dim=1)  # each (N, channels, H, W)

        # The mean of a sum is the sum of the means: pooling first saves a map of full size.
        descriptor = x.mean((2, 3), keepdim=True).reshape(-1, self.radix, self.channels, 1, 1).sum(1)
        weights = self.attention(descriptor)
        out = self.weighted_sum(splits, weights)
        if not torch.jit.is_scripting():
            offer(out, lambda x, weights: self.weighted_sum(x.chunk(self.radix, dim=1), weights), x, weights)
        return out

    def weighted_sum(self, splits: list[Tensor], weights: Tensor) -> Tensor:
        """(N, channels, H, W) of `radix` splits of that shape and the weights of `attention`."""
        factors = weights.chunk(self.radix, dim=1)
        out = splits[0] * factors[0]
        for index in range(1, self.radix):  # not over pairs: torch.fx cannot iterate over what it traces
            out = torch.addcmul(out, splits[index], factors[index])
        return out

    def attention(self, descriptor: Tensor) -> Tensor:
        """Weights (N, radix * channels, 1, 1), split by split, for a channel descriptor (N, channels, 1, 1)."""
        hidden = self.relu1(self.bn1(self.fc1(descriptor)))
        logits = self.fc2(hidden)  # group by group, and within a group split by split
        if self.radix == 1:
            return logits.sigmoid()
        logits = logits.reshape(-1, self.cardinality, self.radix, logits.shape[1] // (self.cardinality * self.radix))
        return logits.softmax(2).transpose(1, 2).flatten(1)[:, :, None, None]
