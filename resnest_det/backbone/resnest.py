"""ResNeSt (arXiv:2004.08955): deep stem and four stages of bottlenecks with split attention.

With `radix=0` and without the other tweaks the same classes are the plain ResNet of the baselines. Parameters have
Detectron2's names: `stem.conv1_1.weight`, `res2.0.conv1.norm.weight`, `res3.0.shortcut.weight`, `linear.weight`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DropBlock2d

from resnest_det.backbone.bottleneck import Bottleneck, Stem
from resnest_det.backbone.layers import Norm, freeze, normed_alone
from resnest_det.backbone.recomputation import recomputing
from resnest_det.backbone.split_attention import Deformable, SplitAttentionConv2d
from resnest_det.errors import ArgumentError, UserError, shown

BLOCKS_PER_STAGE = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
STEM_WIDTH = {14: 32, 26: 32, 50: 32, 101: 64, 152: 64, 200: 64, 269: 64}
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class DilationStyle:
    """How a library puts dilation in the place of a stage's stride.

    Attributes:
        first_as_before: the stage's first block keeps the dilation of the stage before.
        avd: the first block averages 3x3 pixels beside its 3x3 convolution all the same, without a stride.
        pool_shortcut: the first block averages 2x2 pixels in its shortcut all the same, without a stride.
    """

    first_as_before: bool = False
    avd: bool = False
    pool_shortcut: bool = False


DILATION_STYLES = {
    "detectron2": DilationStyle(),
    "timm": DilationStyle(first_as_before=True, pool_shortcut=True),
    "authors": DilationStyle(first_as_before=True, avd=True),  # PyTorch-Encoding, and GluonCV after it
    "mmseg": DilationStyle(first_as_before=True),
}
PLAIN_OFFSETS = Deformable(modulated=False)


@contextmanager
def _fixed_statistics(part: nn.Module) -> Iterator[None]:
    """Keep batch norms in `part` from counting the batch that a checkpointed stage computes a second time."""
    norms = [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def _recomputation_contexts(part: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _fixed_statistics(part)


class ResNeSt(nn.Module):
    """Stem and stages; `forward` gives the feature maps that were asked for.

    Args:
        blocks: blocks per stage (res2 to res5), see `BLOCKS_PER_STAGE`.
        stem_width: channels of the deep stem's first convolutions; it ends with twice as many.
        in_channels: of the image.
        radix, groups, bottleneck_width: splits R, cardinality K and width B of section 3. Radix 0 is a plain convolution.
        reduction_factor: of the attention's hidden layers, see `SplitAttentionConv2d`.
        bottleneck_channels: channels of res2's bottleneck for one group at `bottleneck_width` 64.
        res2_out_channels: channels of res2; each further stage has twice as many.
        deep_stem, avd, avd_first, avg_down, stride_in_1x1: see `Stem` and `Bottleneck`.
        norm: the norm, see `layers.get_norm`.
        output_stride: 32, or 16 or 8 with dilation in place of the last strides.
        dilation_style: whose dilation that is, a name in `DILATION_STYLES`.
        multi_grid: factors of the dilation of each block of res5, its first one's too (arXiv:1706.05587, section 3.2.1); ()
            leaves the blocks to the style.
        deform_on_per_stage: whether 3x3 convolutions are `deformable` in res2, res3, res4, res5.
        freeze_at: this many of (stem, res2, ..., res5) are not trained and their batch norm is fixed.
        checkpoint_stages: stages whose activations are computed again in the backward pass instead of being kept.
        drop_path_rate: of the last block's stochastic depth; it grows linearly from none in the first.
        drop_block_size: of the blocks in res4 and res5, see `Bottleneck`.
        out_features: which of "res1" (stride 2: the stem before its pooling), "stem" (4), "res2" (4), "res3" (8), "res4" (16),
            "res5" (32) to return; stages after the last of them are not built.

    Attributes:
        out_feature_channels, out_feature_strides: dict from feature name to int, in the order of the network.

    Raises:
        UserError: an argument that makes no such network.
    """

    __jit_unused_properties__ = ["size_divisibility"]

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        stem_width: int = 32,
        *,
        in_channels: int = 3,
        radix: int = 2,
        groups: int = 1,
        reduction_factor: int = 4,
        bottleneck_width: int = 64,
        bottleneck_channels: int = 64,
        res2_out_channels: int = 256,
        deep_stem: bool = True,
        avd: bool = True,
        avd_first: bool = False,
        avg_down: bool = True,
        stride_in_1x1: bool = False,
        norm: Norm = "BN",
        output_stride: int = 32,
        dilation_style: str = "detectron2",
        multi_grid: tuple[int, ...] = (),
        deform_on_per_stage: tuple[bool, ...] = (False,) * 4,
        deformable: Deformable = PLAIN_OFFSETS,
        freeze_at: int = 0,
        checkpoint_stages: tuple[str, ...] = (),
        drop_path_rate: float = 0.0,
        drop_block_size: int = 0,
        out_features: tuple[str, ...] = STAGES,
    ):
        super().__init__()
        parts = ("stem", *STAGES)
        known = ("res1", *parts)
        if len(blocks) != len(STAGES):
            raise ArgumentError("blocks", f"is {shown(blocks)}; it must have a number for each of {', '.join(STAGES)}")
        whole_numbers = dict(stem_width=stem_width, in_channels=in_channels, bottleneck_channels=bottleneck_channels)
        whole_numbers |= dict(bottleneck_width=bottleneck_width, res2_out_channels=res2_out_channels, radix=radix, groups=groups)
        for name, value in [*(("blocks", count) for count in blocks), *whole_numbers.items(), ("freeze_at", freeze_at)]:
            signed = name in ("radix", "groups", "freeze_at")  # what is said of those comes below
            if not isinstance(value, int) or isinstance(value, bool) or not (signed or value > 0):
                raise ArgumentError(name, f"is {shown(value)}; it must be a whole number{'' if signed else ', at least 1'}")
        for wanted, possible in ((out_features, known), (checkpoint_stages, parts)):
            for stage in wanted:
                if stage not in possible:
                    raise UserError(f"the backbone has no feature {stage!r}; it has {', '.join(possible)}")
        if not out_features:
            raise UserError(f"the backbone is asked for no feature; it has {', '.join(known)}")
        if output_stride not in (8, 16, 32):
            raise UserError(f"output stride {output_stride!r} is not possible; supported: 8, 16, 32")
        if dilation_style not in DILATION_STYLES:
            raise UserError(f"unknown dilation style {dilation_style!r}; supported: {', '.join(DILATION_STYLES)}")
        if multi_grid and len(multi_grid) != blocks[-1]:
            raise UserError(f"a multi-grid of {len(multi_grid)} factors is not possible: res5 has {blocks[-1]} blocks")
        if any(factor < 1 for factor in multi_grid):
            raise UserError(f"a multi-grid of {shown(tuple(multi_grid))} is not possible: factors are at least 1")
        if radix < 0 or groups < 1:
            raise UserError(f"radix {radix} with {groups} groups is not possible: radix is at least 0, groups at least 1")
        if not 0 <= drop_path_rate <= 1:
            raise ArgumentError("drop_path_rate", f"is {drop_path_rate!r}; it must be from 0 to 1")
        if not 0 <= freeze_at <= len(parts):
            raise UserError(f"cannot freeze {freeze_at} of the backbone's stages; it has {len(parts)}, the stem included")
        base_width = int(bottleneck_channels * bottleneck_width / 64)
        if base_width < 1:
            raise UserError(f"{bottleneck_channels} channels times {bottleneck_width} / 64, in a bottleneck, are less than one")

        self.stem = Stem(in_channels, stem_width, deep=deep_stem, norm=norm)
        self.checkpoint_stages = tuple(checkpoint_stages)
        style = DILATION_STYLES[dilation_style]
        channels, stride, dilation = self.stem.out_channels, self.stem.stride, 1
        shapes = {"stem": (channels, stride)}
        last_stage = max(parts.index(feature) if feature in parts else 0 for feature in out_features)
        for index, name in enumerate(STAGES[:last_stage]):
            stage_stride = 1 if index == 0 else 2
            dilation_before = dilation
            if stride * stage_stride > output_stride:
                dilation *= stage_stride
                stage_stride = 1
            dilations = [dilation] * blocks[index]
            if style.first_as_before:
                dilations[0] = dilation_before
            if multi_grid and name == "res5":
                dilations = [dilation * factor for factor in multi_grid]
            width, out_channels = base_width * groups * 2**index, res2_out_channels * 2**index
            self._check_groups(width, groups, radix, deformable.groups if deform_on_per_stage[index] else 1)
            stage = nn.Sequential(
                *(
                    Bottleneck(
                        channels if block == 0 else out_channels,
                        out_channels,
                        width,
                        stride=stage_stride if block == 0 else 1,
                        dilation=dilations[block],
                        groups=groups,
                        radix=radix,
                        reduction_factor=reduction_factor,
                        norm=norm,
                        avd=avd,
                        avd_first=avd_first,
                        avg_down=avg_down,
                        stride_in_1x1=stride_in_1x1,
                        avd_without_stride=style.avd and block == 0 and dilation > 1,
                        pool_shortcut=style.pool_shortcut and block == 0 and dilation > 1,
                        deformable=deformable if deform_on_per_stage[index] else None,
                        drop_path_rate=drop_path_rate * (sum(blocks[:index]) + block) / max(sum(blocks) - 1, 1),
                        drop_block_size=drop_block_size if name in ("res4", "res5") else 0,
                    )
                    for block in range(blocks[index])
                )
            )
            self.add_module(name, stage)
            channels, stride = out_channels, stride * stage_stride
            shapes[name] = (channels, stride)

        self.parts = tuple(shapes)
        shapes = {"res1": (self.stem.out_channels, 2)} | shapes
        self.out_features = tuple(feature for feature in shapes if feature in out_features)
        self.wanted = list(self.out_features)  # for scripting, which takes no tuple of any length
        self.out_feature_channels = {feature: shapes[feature][0] for feature in self.out_features}
        self.out_feature_strides = {feature: shapes[feature][1] for feature in self.out_features}
        self.freeze(freeze_at)

    def freeze(self, freeze_at: int) -> None:
        """Stop training the first `freeze_at` of (stem, res2, ..., res5), and fix their batch norm."""
        for name in self.parts[:freeze_at]:
            freeze(getattr(self, name))

    def set_drop_block(self, rate: float) -> None:
        """The share of each map that DropBlock drops in training, from 0 to 1."""
        for module in self.modules():
            if isinstance(module, DropBlock2d):
                module.p = rate

    def zero_last_norms(self) -> None:
        """Begin as if there were no blocks: scale 0 for the last norm of each (arXiv:1706.02677, section 5.1)."""
        for module in self.modules():
            if isinstance(module, Bottleneck) and module.conv3.norm is not None:
                nn.init.zeros_(module.conv3.norm.weight)

    @staticmethod
    def _check_groups(width: int, groups: int, radix: int, deform_groups: int) -> None:
        if width % (groups * max(radix, 1)):
            raise UserError(f"a 3x3 convolution of {width} channels cannot be divided into {groups} groups x radix {radix}")
        if width % deform_groups:
            raise UserError(f"a 3x3 convolution of {width} channels cannot be divided into {deform_groups} deformable groups")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the activations of all stages again in the backward pass, or (False) keep them."""
        self.checkpoint_stages = STAGES if enable else ()

    @property
    def size_divisibility(self) -> int:
        """What the input's sides, in pixels, must be a multiple of for the maps' sizes to be in the ratio of their strides."""
        return max(self.out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, each (N, out_feature_channels, H / stride, W / stride), for images (N, in_channels, H, W)."""
        return self.feature_maps(x, self.wanted)

    def feature_maps(self, x: Tensor, wanted: list[str]) -> dict[str, Tensor]:
        """The maps that are called so, computed as far as the last of them.

        Args:
            x: images (N, in_channels, H, W).
            wanted: names of stem and stages; "res1" is the stem's map of stride 2, before the max pooling.

        Raises:
            UserError: see `check_batch`.
        """
        if not torch.jit.is_scripting():
            self.check_batch(x)
        features: dict[str, Tensor] = {}
        if "res1" in wanted:
            x = self.stem.convolutions(x) if torch.jit.is_scripting() else self.run_part("stem", self.stem.convolutions, x)
            features["res1"] = x
            x = self.stem.pool(x)
        else:
            x = self.stem(x) if torch.jit.is_scripting() else self.run_part("stem", self.stem, x)
        if "stem" in wanted:
            features["stem"] = x
        for name, part in self.named_children():  # a loop that scripting can unroll
            if name in self.parts and name != "stem" and len(features) < len(wanted):
                x = part(x) if torch.jit.is_scripting() else self.run_part(name, part, x)
                if name in wanted:
                    features[name] = x
        return features

    def run_part(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`part(x)`, of the stem or stage `name`; in training without keeping what is cheap to compute again or, of
        `checkpoint_stages`, what is inside."""
        if not self.training:
            return part(x)
        if name in self.checkpoint_stages:
            return checkpoint(part, x, use_reentrant=False, context_fn=partial(_recomputation_contexts, getattr(self, name)))
        with recomputing(x):
            return part(x)

    def check_batch(self, x: Tensor) -> None:
        """Raises `UserError` for one image where batch norm is trained: attention norms one value per channel and image."""
        # Not what torch.fx puts in the place of images while it traces.
        if self.training and isinstance(x, Tensor) and len(x) == 1 and any(map(_needs_two_images, self.modules())):
            raise UserError(
                "a batch of one image cannot train the batch norm of split attention, which has one value per channel and "
                "image: use batches of at least two (drop_last=True where the last may have one), "
                'norm="FrozenBN" or "GN", or call model.eval() first'
            )


def _needs_two_images(module: nn.Module) -> bool:
    return isinstance(module, SplitAttentionConv2d) and normed_alone(module.bn1)
