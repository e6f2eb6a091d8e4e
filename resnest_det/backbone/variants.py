"""The family: the table of architectures, and what is looked up in it."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import Tensor

from resnest_det.errors import UserError, nearest
from resnest_det.weights.published import ALIASES, IMAGENET_WEIGHTS, ImageNetWeights


@dataclass(frozen=True)
class Variant:
    """A member of the family: the shape of the network, and its published weights.

    Attributes:
        name: the authors' name.
        blocks, stem_width, radix, groups, bottleneck_width, avd_first: see `resnest.ResNeSt`.
    """

    name: str
    blocks: tuple[int, int, int, int]
    stem_width: int = 64
    radix: int = 2
    groups: int = 1
    bottleneck_width: int = 64
    avd_first: bool = False

    @property
    def network(self) -> dict:
        """The arguments of `resnest.ResNeSt` that make this variant."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}

    @property
    def published(self) -> ImageNetWeights:
        """The ImageNet weights, their file and their input."""
        return IMAGENET_WEIGHTS[self.name]


def _fast(setting: str, *, radix: int, groups: int, width: int) -> Variant:
    return Variant(
        f"resnest50_fast_{setting}",
        (3, 4, 6, 3),
        stem_width=32,
        radix=radix,
        groups=groups,
        bottleneck_width=width,
        avd_first=True,
    )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("resnest14", (1, 1, 1, 1), stem_width=32),
        Variant("resnest26", (2, 2, 2, 2), stem_width=32),
        Variant("resnest50", (3, 4, 6, 3), stem_width=32),
        Variant("resnest101", (3, 4, 23, 3)),
        Variant("resnest200", (3, 24, 36, 3)),
        Variant("resnest269", (3, 30, 48, 8)),
        _fast("1s1x64d", radix=1, groups=1, width=64),
        _fast("2s1x64d", radix=2, groups=1, width=64),
        _fast("4s1x64d", radix=4, groups=1, width=64),
        _fast("1s2x40d", radix=1, groups=2, width=40),
        _fast("2s2x40d", radix=2, groups=2, width=40),
        _fast("4s2x40d", radix=4, groups=2, width=40),
        _fast("1s4x24d", radix=1, groups=4, width=24),
    )
}


def find_variant(name: str) -> Variant:
    """The variant of this name, the authors' or timm's, which may have the hub before it: `hf-hub:timm/resnest50d.in1k`.

    Raises:
        UserError: there is none; the nearest names are listed.
    """
    if not isinstance(name, str):
        raise UserError(f"name is {name!r}, expected the name of a model such as 'resnest50'")
    name = re.sub(r"^(hf[-_]hub:)?timm/", "", name)
    if name.startswith(("hf-hub:", "hf_hub:")) or "@" in name:
        raise UserError(
            f"unknown model {name!r}: on the hub only timm's ResNeSts are known by name; for other files and revisions give the "
            "variant's name, and checkpoint_path='hf://owner/name@revision'"
        )
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        near = nearest(name, [*VARIANTS, *ALIASES])
        raise UserError(
            f"unknown model {name!r}; nearest: {', '.join(near)}"
            if near
            else f"unknown model {name!r}; known: {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]


def list_models(
    filter: str | Iterable[str] = "", pretrained: bool = False, exclude_filters: str | Iterable[str] = ""
) -> list[str]:
    """Names of the models, from small to large.

    Args:
        filter: shell pattern (`*50*`), or several, one of which the name or one of its aliases matches; "" for all.
        pretrained: only those with published weights.
        exclude_filters: shell pattern, or several, none of which matches.

    Raises:
        UserError: a filter is no text.
    """
    wanted, unwanted = _patterns("filter", filter), _patterns("exclude_filters", exclude_filters)

    def matches(variant: Variant, patterns: list[str]) -> bool:
        names = (variant.name, *variant.published.aliases)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return [
        variant.name
        for variant in VARIANTS.values()
        if (not wanted or matches(variant, wanted))
        and not matches(variant, unwanted)
        and (not pretrained or variant.published.file.mirrors)
    ]


def _patterns(name: str, value: str | Iterable[str]) -> list[str]:
    patterns = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f"{name} is {value!r}, expected a shell pattern such as '*50*', or a list of them")
    return [pattern for pattern in patterns if pattern]


def looks_like(backbone: dict[str, Tensor]) -> list[str]:
    """Names of the variants that have parameters of these shapes, under this package's names without a prefix.

    There may be two: resnest50 and resnest50_fast_2s1x64d differ only in where they pool.
    """
    try:
        first, split = backbone["res2.0.conv1.weight"], backbone["res2.0.conv2.conv.weight"]
        stem_width = backbone["stem.conv1_1.weight"].shape[0]
    except KeyError:
        return []
    width = first.shape[0]
    radix = split.shape[0] // width
    groups = width // max(split.shape[1] * radix, 1)
    blocks = [len({name.split(".")[1] for name in backbone if name.startswith(f"res{stage}.")}) for stage in (2, 3, 4, 5)]
    return [
        variant.name
        for variant in VARIANTS.values()
        if (variant.radix, variant.groups, variant.stem_width) == (radix, groups, stem_width)
        and variant.bottleneck_width * variant.groups == width
        # A model can end before the last stages; a file of it is still of this variant.
        and all(count in (0, expected) for count, expected in zip(blocks, variant.blocks))
    ]
