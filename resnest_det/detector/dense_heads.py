"""Heads that label pixels from the last map of a dilated network: FCN, PSPNet, DeepLabV3 and DeepLabV3+."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d
from resnest_det.detector.pixel_loss import PixelHead, PixelLoss
from resnest_det.detector.pooling_pyramid import ASPP, AsppSettings, DepthwiseSeparableConv2d, PyramidPooling, conv_norm_relu
from resnest_det.errors import ArgumentError


class DenseHead(PixelHead):
    """Features of an image's pixels, dropout, and a 1x1 convolution to the classes.

    Args:
        channels: of the features.
        dropout: probability; of whole channels with `drop_channels`, of single values without.
        others: see `PixelHead`.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        loss: PixelLoss,
        align_corners: bool = False,
        dropout: float = 0.0,
        drop_channels: bool = False,
    ):
        super().__init__(num_classes, loss, align_corners)
        if not 0 <= dropout < 1:
            raise ArgumentError("dropout", f"{dropout} is not supported; supported: 0 to below 1")
        self.dropout = (nn.Dropout2d if drop_channels else nn.Dropout)(dropout)
        self.predictor = Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @abstractmethod
    def pixel_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """(N, channels, h, w) from maps by name, of the size of the finest map that the head uses."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, C, h, w), from maps by name, of the size of the finest map that the head uses."""
        return self.predictor(self.dropout(self.pixel_features(features)))


class FCNHead(DenseHead):
    """3x3 convolutions (arXiv:1411.4038, on a dilated network).

    Args:
        in_feature, in_channels: name and channels of the map.
        channels: of the convolutions.
        num_convs: how many there are.
        norm: of the convolutions, see `get_norm`.
        concat_input: one more of them takes the map beside what the others make of it, as in MMSegmentation.
        others: see `DenseHead`.
    """

    def __init__(
        self,
        in_feature: str,
        in_channels: int,
        channels: int,
        *,
        num_convs: int = 1,
        norm: str,
        concat_input: bool = False,
        **others,
    ):
        super().__init__(channels, **others)
        self.in_feature = in_feature
        self.convs = nn.Sequential(*_convs(in_channels, channels, num_convs, norm))
        self.conv_cat = conv_norm_relu(in_channels + channels, channels, 3, norm) if concat_input else None

    def pixel_features(self, features: Mapping[str, Tensor]) -> Tensor:
        x = features[self.in_feature]
        convolved = self.convs(x)
        return convolved if self.conv_cat is None else self.conv_cat(torch.cat([x, convolved], dim=1))


class PSPHead(DenseHead):
    """A pooling pyramid (PSPNet, arXiv:1612.01105).

    Args:
        in_feature, in_channels: name and channels of the map.
        channels: of each branch and of the features.
        norm: of the convolutions, see `get_norm`.
        grids: see `PyramidPooling`.
        others: see `DenseHead`.
    """

    def __init__(
        self, in_feature: str, in_channels: int, channels: int, *, norm: str, grids: Sequence[int] = (1, 2, 3, 6), **others
    ):
        super().__init__(channels, **others)
        self.in_feature = in_feature
        self.pyramid = PyramidPooling(in_channels, channels, grids, norm, self.align_corners)

    def pixel_features(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.pyramid(features[self.in_feature])


class DeepLabV3Head(DenseHead):
    """Atrous spatial pyramid pooling (DeepLabV3, arXiv:1706.05587).

    Args:
        in_feature, in_channels: name and channels of the map.
        aspp: the pyramid.
        norm: of the convolutions, see `get_norm`.
        num_convs: 3x3 convolutions after it, of as many channels.
        others: see `DenseHead`.
    """

    def __init__(self, in_feature: str, in_channels: int, *, aspp: AsppSettings, norm: str, num_convs: int = 0, **others):
        super().__init__(aspp.channels, **others)
        self.in_feature = in_feature
        self.aspp = ASPP(in_channels, aspp, norm, self.align_corners)
        self.convs = nn.Sequential(*_convs(aspp.channels, aspp.channels, num_convs, norm))

    def pixel_features(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.convs(self.aspp(features[self.in_feature]))


def _convs(in_channels: int, channels: int, count: int, norm: str) -> list[Conv2d]:
    return [conv_norm_relu(in_channels if i == 0 else channels, channels, 3, norm) for i in range(count)]


class DeepLabV3PlusHead(DenseHead):
    """DeepLabV3's pyramid on the coarsest map, and a decoder that refines it with finer ones (arXiv:1802.02611).

    Parameters have Detectron2's names: `decoder.res5.project_conv` is the pyramid, `decoder.res2.project_conv` the 1x1
    convolution of a finer map, and `decoder.res2.fuse_conv` what joins it with the coarser ones.

    Args:
        in_features: names of the maps.
        strides, channels: of the maps by name; those that are not used may be among them.
        project_channels: of each finer map, from fine to coarse.
        decoder_channels: of the joined maps.
        aspp: the pyramid.
        norm: of the convolutions, see `get_norm`.
        fuse_kernels: sides of the depthwise separable convolutions that join maps, where `aspp` has such; otherwise two 3x3
            convolutions do.
        others: see `DenseHead`.

    Raises:
        ArgumentError: a map is unknown, or `project_channels` does not have a number for each finer map.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        strides: Mapping[str, int],
        channels: Mapping[str, int],
        *,
        project_channels: Sequence[int],
        decoder_channels: int,
        aspp: AsppSettings,
        norm: str,
        fuse_kernels: Sequence[int] = (5,),
        **others,
    ):
        super().__init__(decoder_channels, **others)
        unknown = [name for name in in_features if name not in strides]
        if unknown or len(in_features) < 2:
            raise ArgumentError(
                "in_features", f"{list(in_features)} is not supported; supported: two or more of {', '.join(strides)}"
            )
        self.in_features = tuple(sorted((name for name in strides if name in in_features), key=strides.get))
        *finer, coarsest = self.in_features
        if len(project_channels) != len(finer):
            raise ArgumentError(
                "project_channels",
                f"{list(project_channels)} is not supported; supported: a number for each of {', '.join(finer)}",
            )
        self.decoder = nn.ModuleDict()
        for index, name in enumerate(finer):
            below = aspp.channels if index == len(finer) - 1 else decoder_channels
            self.decoder[name] = nn.ModuleDict(
                {
                    "project_conv": conv_norm_relu(channels[name], project_channels[index], 1, norm),
                    "fuse_conv": _fuse(
                        project_channels[index] + below, decoder_channels, norm, fuse_kernels if aspp.depthwise_separable else ()
                    ),
                }
            )
        self.decoder[coarsest] = nn.ModuleDict({"project_conv": ASPP(channels[coarsest], aspp, norm, self.align_corners)})

    def pixel_features(self, features: Mapping[str, Tensor]) -> Tensor:
        *finer, coarsest = self.in_features
        x = self.decoder[coarsest]["project_conv"](features[coarsest])
        for name in reversed(finer):
            projected = self.decoder[name]["project_conv"](features[name])
            x = F.interpolate(x, size=projected.shape[-2:], mode="bilinear", align_corners=self.align_corners)
            x = self.decoder[name]["fuse_conv"](torch.cat([projected, x], dim=1))
        return x


def _fuse(in_channels: int, channels: int, norm: str, separable_kernels: Sequence[int]) -> nn.Module:
    if not separable_kernels:
        return nn.Sequential(*_convs(in_channels, channels, 2, norm))
    convs = [
        DepthwiseSeparableConv2d(in_channels if i == 0 else channels, channels, kernel, norm)
        for i, kernel in enumerate(separable_kernels)
    ]
    return convs[0] if len(convs) == 1 else nn.Sequential(*convs)
