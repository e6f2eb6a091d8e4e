"""The semantic branch of Panoptic FPN (arXiv:1901.02446, section 3.2, figure 3)."""

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d, get_norm
from resnest_det.detector.pixel_loss import DEFAULT_LOSS, PixelHead, PixelLoss
from resnest_det.errors import ArgumentError


class SemSegFPNHead(PixelHead):
    """Brings maps of several strides to one by convolutions and doublings, adds them and classifies each pixel.

    A map goes through as many 3x3 convolutions, each followed by a bilinear doubling, as there are doublings between its
    stride and the common one; one that has the common stride already through a single convolution. Each of these branches is
    a child module with the name of its map, so that parameters are called `p2.0.weight`, `p2.0.norm.weight`, `p4.2.weight`.

    Args:
        in_features: names of the maps to use, of a pyramid or of a (dilated) backbone itself.
        strides, channels: of the maps by name; those that are not used may be among them.
        num_classes: C, of which 0 stands for all things together where the truth comes from panoptic annotations.
        conv_dim: channels of the 3x3 convolutions.
        common_stride: in pixels; the stride of every map is this times a power of two.
        norm: of the 3x3 convolutions, see `get_norm`; without one they have a bias.
        loss: see `PixelHead`.

    Raises:
        ArgumentError: a map is unknown, or its stride cannot be brought to the common one.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        strides: Mapping[str, int],
        channels: Mapping[str, int],
        *,
        num_classes: int,
        conv_dim: int = 128,
        common_stride: int = 4,
        norm: str = "GN",
        loss: PixelLoss = DEFAULT_LOSS,
    ):
        super().__init__(num_classes, loss)
        unknown = [name for name in in_features if name not in strides]
        if unknown or not in_features:
            raise ArgumentError("in_features", f"{list(in_features)} is not supported; supported: some of {', '.join(strides)}")
        # From fine to coarse, and in the backbone's order where a dilated one has several maps of one stride.
        self.in_features = tuple(sorted((name for name in strides if name in in_features), key=strides.get))
        self.common_stride = common_stride
        for name in self.in_features:
            doublings = math.log2(strides[name] / common_stride)
            if doublings < 0 or doublings != int(doublings):
                raise ArgumentError(
                    "common_stride",
                    f"{common_stride} is not supported: the stride of {name}, {strides[name]}, is not this times a power of two",
                )
            self.add_module(name, _branch(channels[name], conv_dim, int(doublings), norm))
        self.predictor = Conv2d(conv_dim, num_classes, 1)
        # He initialisation would, of a few classes, begin with logits so large that their gradients drown those of other heads.
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C, H, W) at the size of the padded images, from maps (N, channels, H / stride, W / stride) by name."""
        first, *others = self.in_features
        fused = getattr(self, first)(features[first])
        for name in others:
            fused = fused + getattr(self, name)(features[name])
        logits = self.predictor(fused)
        # In single precision also where convolutions run in half: the loss sums over all pixels.
        return F.interpolate(logits.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False)


def _branch(in_channels: int, conv_dim: int, doublings: int, norm: str) -> nn.Sequential:
    layers = []
    for _ in range(max(1, doublings)):
        conv = Conv2d(in_channels, conv_dim, 3, padding=1, bias=not norm, norm=get_norm(norm, conv_dim), activation=F.relu)
        c2_msra_fill(conv)
        layers.append(conv)
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        in_channels = conv_dim
    return nn.Sequential(*layers)
