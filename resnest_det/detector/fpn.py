"""Feature pyramid network (arXiv:1612.03144)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d, get_norm
from resnest_det.backbone.recomputation import offer
from resnest_det.errors import ArgumentError


class MaxPoolTop(nn.Module):
    """One more level, subsampled from the coarsest (FPN, section 4.1): p6 from p5."""

    in_feature = None  # the pyramid's own coarsest level
    num_levels = 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) to [(N, C, H / 2, W / 2)]."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class ConvolutionTop(nn.Module):
    """Two more levels by 3x3 convolutions of stride 2 (RetinaNet, arXiv:1708.02002, section 4): p6 from res5, p7 from p6.

    Args:
        in_channels: of the map `in_feature` of the bottom-up network.
        out_channels: of the levels.
    """

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) to [(N, C, H / 2, W / 2), (N, C, H / 4, W / 4)]."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class FPN(nn.Module):
    """Top-down pyramid over the stages of a bottom-up network, p2 ... p5 for res2 ... res5, and the levels of `top_block` above.

    Args:
        bottom_up: takes (N, C, H, W), returns a dict of maps, and says `out_feature_strides` and `out_feature_channels`.
        in_features: names of its maps to use, from high to low resolution; each stride must be twice the one before.
        out_channels: channels of every pyramid level.
        norm: name of the norm after each convolution, see `get_norm`; without one the convolutions have a bias.
        fuse_type: "sum" of lateral and top-down maps, or their "avg".
        top_block: makes `num_levels` coarser levels, of the map `in_feature` of `bottom_up` or, where that is None, of the
            coarsest level; a `MaxPoolTop` by default.

    Attributes `out_feature_strides`, `out_feature_channels` (dicts by level name) and `size_divisibility` (pixels).

    Raises:
        ArgumentError: a feature is unknown, strides are not consecutive, or `fuse_type` is unknown.
    """

    def __init__(
        self,
        bottom_up: nn.Module,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
        fuse_type: str = "sum",
        top_block: MaxPoolTop | ConvolutionTop | None = None,
    ):
        super().__init__()
        unknown = [name for name in in_features if name not in bottom_up.out_feature_strides]
        if unknown or not in_features:
            known = ", ".join(bottom_up.out_feature_strides)
            raise ArgumentError("in_features", f"{list(in_features)} is not supported; supported: some of {known}")
        strides = [bottom_up.out_feature_strides[name] for name in in_features]
        if any(high != 2 * low for low, high in zip(strides, strides[1:])):
            raise ArgumentError("in_features", f"{list(in_features)} is not supported: strides {strides} do not double each time")
        if fuse_type not in ("sum", "avg"):
            raise ArgumentError("fuse_type", f"{fuse_type!r} is not supported; supported: 'sum', 'avg'")
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
        self.top_block = top_block or MaxPoolTop()
        self.top_levels = [self.levels[-1] + 1 + i for i in range(self.top_block.num_levels)]
        self.out_feature_strides = {f"p{level}": 2**level for level in (*self.levels, *self.top_levels)}
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
                fused = self._fuse(fused, top_down)
            top_down = fused
            pyramid[f"p{level}"] = getattr(self, f"fpn_output{level}")(fused)
        source = self.top_block.in_feature
        above = self.top_block(pyramid[f"p{self.levels[-1]}"] if source is None else bottom_up[source])
        # Not by |, which torch.export does not know in torch 2.6.
        maps = {f"p{level}": pyramid[f"p{level}"] for level in self.levels}
        maps.update({f"p{level}": feature for level, feature in zip(self.top_levels, above, strict=True)})
        return maps

    def _fuse(self, lateral: Tensor, top_down: Tensor) -> Tensor:
        """Of a lateral map, which is overwritten where nothing learns from it, and the level above, of half its size."""
        finer = F.interpolate(top_down, scale_factor=2.0, mode="nearest")
        if not self.training:
            lateral += finer
            return lateral.div_(2) if self.fuse_type == "avg" else lateral

        def compute(lateral: Tensor, top_down: Tensor) -> Tensor:
            fused = lateral + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
            return fused / 2 if self.fuse_type == "avg" else fused

        fused = lateral + finer
        if self.fuse_type == "avg":
            fused = fused / 2
        offer(fused, compute, lateral, top_down)
        return fused
