"""The named models: `create_model`, `list_models`, and the input transform that belongs to a model."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.backbone.loading import load_into
from resnest_det.backbone.resnest import STAGES, ResNeSt
from resnest_det.backbone.variants import VARIANTS, Variant, find_variant
from resnest_det.errors import UserError
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.published import IMAGENET_MEAN, IMAGENET_STD
from resnest_det.weights.weights import read_weights

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
_FEATURES = ("stem", *STAGES)  # out_indices 0 ... 4


class Classifier(ResNeSt):
    """ResNeSt with global average pooling, dropout and a linear layer (`linear`).

    Args:
        num_classes: outputs; 0 leaves the linear layer away, and the output is the embedding.
        drop_rate: dropout before the linear layer, in training.
        pretrained_cfg: what belongs to the published weights, see `create_model`.
        arguments: of `ResNeSt`.

    Attributes:
        num_features: channels of the last feature map and of the embedding.
    """

    def __init__(self, num_classes: int, drop_rate: float, pretrained_cfg: dict, **arguments):
        super().__init__(**arguments)
        self.num_classes = num_classes
        self.num_features = self.out_feature_channels["res5"]
        self.drop_rate = drop_rate
        self.pretrained_cfg = pretrained_cfg
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.normal_(self.linear.weight, std=0.01)  # arXiv:1706.02677, section 5.1
            nn.init.zeros_(self.linear.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, num_features, H / output_stride, W / output_stride), of images (N, in_chans, H, W)."""
        return super().forward(x)["res5"]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) from the last feature map; with `pre_logits` the embedding (N, num_features)."""
        x = F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) for normalised images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


class FeatureExtractor(ResNeSt):
    """ResNeSt whose `forward` gives a list of feature maps, the first of them at stride 2, before the max pooling.

    Attributes:
        out_feature_channels, out_feature_strides: of each map, by stage, in the order of the list.
    """

    def __init__(self, out_indices: Sequence[int], pretrained_cfg: dict, **arguments):
        super().__init__(out_features=tuple(_FEATURES[index] for index in out_indices), **arguments)
        self.pretrained_cfg = pretrained_cfg
        if "stem" in self.out_features:
            self.out_feature_strides["stem"] = 2

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (N, channels, H / stride, W / stride), from the largest to the smallest, for images (N, in_chans, H, W)."""
        x = self.stem.convolutions(x)
        maps = [x] if "stem" in self.out_features else []
        x = self.stem.pool(x)
        for name in self.parts[1:]:
            x = getattr(self, name)(x)
            if name in self.out_features:
                maps.append(x)
        return maps


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int = IMAGENET_CLASSES,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
    output_stride: int = 32,
    drop_rate: float = 0.0,
    norm: str = "BN",
    checkpoint_path: str | None = None,
) -> Classifier | FeatureExtractor:
    """Build a ResNeSt by name.

    Args:
        name: see `list_models`; timm's names (`resnest101e`, `resnest101e.in1k`) are known too.
        pretrained: load the published ImageNet weights, downloaded on first use. With a `num_classes` other than 1000 the
            linear layer stays freshly initialised. With other than 3 channels the first convolution is adapted: its
            weights are summed for 1 channel, else repeated and scaled so that the expected response stays the same.
        num_classes: outputs; 0 for embeddings (N, num_features).
        in_chans: channels of the images.
        features_only: return a model that gives feature maps instead of logits.
        out_indices: with `features_only`, which of the maps of stride 2, 4, 8, 16, 32; negative ones count from the last.
        output_stride: 32, or 16 or 8 with dilation in place of the last strides, as timm dilates.
        drop_rate: dropout before the linear layer.
        norm: "BN", "SyncBN", "FrozenBN", "GN" or "".
        checkpoint_path: load this file (or address, see `resolve_weights`) instead; all of it has to fit.

    Returns:
        The model in training mode. `model.pretrained_cfg` says what the published weights expect: `input_size`, `mean`,
        `std`, `crop_pct`, `interpolation`, and where they come from (`source`).

    Raises:
        UserError: unknown name, an argument that makes no such network, weights that cannot be had or do not fit.
    """
    variant = find_variant(name)
    if num_classes < 0:
        raise UserError(f"num_classes is {num_classes}, expected at least 0 (0 gives embeddings)")
    if in_chans < 1:
        raise UserError(f"in_chans is {in_chans}, expected at least 1")
    if not 0 <= drop_rate < 1:
        raise UserError(f"drop_rate is {drop_rate}, expected at least 0 and less than 1")
    if pretrained and checkpoint_path:
        raise UserError("pretrained and checkpoint_path are both given: choose one")
    arguments = dict(
        blocks=variant.blocks,
        stem_width=variant.stem_width,
        in_channels=in_chans,
        radix=variant.radix,
        groups=variant.groups,
        bottleneck_width=variant.bottleneck_width,
        avd_first=variant.avd_first,
        norm=norm,
        output_stride=output_stride,
        dilation_style="timm",
    )
    if features_only:
        model = FeatureExtractor(_checked_indices(out_indices), _pretrained_cfg(variant), **arguments)
    else:
        model = Classifier(num_classes, drop_rate, _pretrained_cfg(variant), out_features=("res5",), **arguments)
    if pretrained:
        path = resolve_weights(f"resnest://{variant.name}")
        _load(model, variant, path, adapt_to=in_chans, with_head=num_classes == IMAGENET_CLASSES)
    elif checkpoint_path:
        _check_is_of(variant, checkpoint_path)  # says more than that a damaged file of another variant is damaged
        _load(model, variant, resolve_weights(checkpoint_path))
    return model


def _checked_indices(out_indices: Sequence[int]) -> list[int]:
    count = len(_FEATURES)
    if isinstance(out_indices, int):
        raise UserError(f"out_indices is {out_indices}, expected a list of indices of feature maps such as (1, 2, 3, 4)")
    wrong = [index for index in out_indices if not -count <= index < count]
    if wrong or not out_indices:
        raise UserError(f"out_indices {list(out_indices)} are not possible: there are {count} feature maps, 0 to {count - 1}")
    positive = sorted(index % count for index in out_indices)
    if len(set(positive)) < len(positive):
        raise UserError(f"out_indices {list(out_indices)} name a feature map twice")
    return positive


def _pretrained_cfg(variant: Variant) -> dict:
    published = variant.published
    return {
        "architecture": variant.name,
        "num_classes": IMAGENET_CLASSES,
        "input_size": (3, published.image_size, published.image_size),
        "crop_pct": published.crop,
        "interpolation": published.interpolation,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "stem.conv1_1",
        "classifier": "linear",
        "source": published.file.mirrors,
        "license": "apache-2.0",
    }


def _check_is_of(variant: Variant, path: str | os.PathLike) -> None:
    # Two variants have parameters of the same shapes: published files are told apart by their names.
    other = next((each for each in VARIANTS.values() if each.published.file.filename == Path(path).name), variant)
    if other is not variant:
        raise UserError(f"weights {path}: they are of {other.name}, the model is {variant.name}")


def _load(model: nn.Module, variant: Variant, path: str, adapt_to: int = 3, with_head: bool = True) -> None:
    _check_is_of(variant, path)
    weights = read_weights(path)
    backbone = {name: value for name, value in weights.backbone.items() if with_head or not name.startswith("linear.")}
    first = "stem.conv1_1.weight"
    if first in backbone and adapt_to != 3:
        backbone[first] = _adapted(backbone[first], adapt_to)
    report = load_into(model, replace(weights, backbone=backbone))
    unexpected = [name for name in report.fresh if with_head or not name.startswith("linear.")]
    if unexpected:
        logger.warning("%s has nothing for %s: freshly initialised", path, ", ".join(unexpected))


def _adapted(weight: Tensor, channels: int) -> Tensor:
    """First convolution (C, 3, 3, 3) for images of other channels, as timm does it: (C, channels, 3, 3)."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    known = weight.shape[1]
    return weight.repeat(1, math.ceil(channels / known), 1, 1)[:, :channels] * (known / channels)


def transforms_for(model: nn.Module) -> Callable:
    """The torchvision transform from a PIL image (RGB) to the normalised tensor (3, H, W) that a model's weights expect.

    It is the transform of the published evaluation: resize the short side, crop the centre, normalise.

    Raises:
        UserError: the model was not made by `create_model`, or does not take three channels.
    """
    from torchvision import transforms

    if not hasattr(model, "pretrained_cfg"):
        raise UserError(f"a {type(model).__name__} has no pretrained_cfg: transforms_for takes what create_model returns")
    channels = model.stem.conv1_1.in_channels
    if channels != 3:
        raise UserError(f"the model takes {channels} channels; the published mean and std are of the 3 of RGB")
    cfg = model.pretrained_cfg
    size = cfg["input_size"][-1]
    return transforms.Compose(
        [
            transforms.Resize(math.floor(size / cfg["crop_pct"]), transforms.InterpolationMode(cfg["interpolation"])),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(torch.tensor(cfg["mean"]), torch.tensor(cfg["std"])),
        ]
    )
