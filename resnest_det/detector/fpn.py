"""Feature pyramid network (arXiv:1612.03144)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d, get_norm
from resnest_det.errors import UserError


class FPN(nn.Module):
    """Top-down pyramid over the stages of a bottom-up network, p2 ... p5 for res2 ... res5, and p6 subsampled from p5.

    Args:
        bottom_up: takes (N, C, H, W), returns a dict of maps, and says `out_feature_strides` and `out_feature_channels`.
        in_features: names of its maps to use, from high to low resolution; each stride must be twice the one before.
        out_channels: channels of every pyramid level.
        norm: name of the norm after each convolution, see `get_norm`; without one the convolutions have a bias.
        fuse_type: "sum" of lateral and top-down maps, or their "avg".

    Attributes `out_feature_strides`, `out_feature_channels` (dicts by level name) and `size_divisibility` (pixels).

    Raises:
        UserError: a feature is unknown, strides are not consecutive, or `fuse_type` is unknown.
    """

    def __init__(
        self, bottom_up: nn.Module, in_features: Sequence[str], out_channels: int, norm: str = "", fuse_type: str = "sum"
    ):
        super().__init__()
        unknown = [name for name in in_features if name not in bottom_up.out_feature_strides]
        if unknown or not in_features:
            known = list(bottom_up.out_feature_strides)
            raise UserError(f"MODEL.FPN.IN_FEATURES {list(in_features)}: the backbone gives {known}")
        strides = [bottom_up.out_feature_strides[name] for name in in_features]
        if any(high != 2 * low for low, high in zip(strides, strides[1:])):
            raise UserError(f"MODEL.FPN.IN_FEATURES {list(in_features)}: strides {strides} do not double from one to the next")
        if fuse_type not in ("sum", "avg"):
            raise UserError(f"MODEL.FPN.FUSE_TYPE {fuse_type!r}: supported are 'sum' and 'avg'")
        self.in_features = tuple(in_features)
        self.fuse_type = fuse_type
        self.levels = [int(math.log2(stride)) for stride in strides]
        for level, name in zip(self.levels, in_features):
            channels = bottom_up.out_feature_channels[name]
            lateral = Conv2d(channels, out_channels, 1, bias=not norm, norm=get_norm(norm, out_channels))
            output = Conv2d(out_channels, out_channels, 3, padding=1, bias=not norm, norm=get_norm(norm, out_channels))
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.bottom_up = bottom_up
        self.out_feature_strides = {f"p{level}": 2**level for level in (*self.levels, self.levels[-1] + 1)}
        self.out_feature_channels = dict.fromkeys(self.out_feature_strides, out_channels)
        self.size_divisibility = strides[-1]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pyramid maps by name, from high to low resolution, for `images` whose sides `size_divisibility` divides."""
        bottom_up = self.bottom_up(images)
        pyramid = {}
        top_down = None
        for level, name in zip(reversed(self.levels), reversed(self.in_features)):
            fused = getattr(self, f"fpn_lateral{level}")(bottom_up[name])
            if top_down is not None:
                fused += F.interpolate(top_down, scale_factor=2.0, mode="nearest")
                if self.fuse_type == "avg":
                    fused /= 2
            top_down = fused
            pyramid[f"p{level}"] = getattr(self, f"fpn_output{level}")(fused)
        coarsest = self.levels[-1]
        result = {f"p{level}": pyramid[f"p{level}"] for level in self.levels}
        result[f"p{coarsest + 1}"] = F.max_pool2d(pyramid[f"p{coarsest}"], kernel_size=1, stride=2)
        return result
