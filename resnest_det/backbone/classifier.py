"""The named models: `create_model`, `list_models`, and the input transform that belongs to a model."""

import logging
import math
import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.backbone.layers import Norm
from resnest_det.backbone.loading import load_into
from resnest_det.backbone.resnest import STAGES, ResNeSt
from resnest_det.backbone.variants import VARIANTS, Variant, find_variant
from resnest_det.data.image import to_eight_bits
from resnest_det.errors import UserError
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.published import IMAGENET_MEAN, IMAGENET_STD
from resnest_det.weights.weights import Weights, read_weights

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
RES2_OUT_CHANNELS = 256
POOL_TYPES = ("avg", "max", "avgmax", "catavgmax", "")
_FEATURES = ("stem", *STAGES)  # out_indices 0 ... 4


class FeatureInfo(list):
    """What is known of each feature map, as in timm: dicts of `num_chs`, `reduction` (its stride), `module` and `index`.

    Attributes:
        out_indices: of the maps that the model gives, which the methods speak of unless they are given an index or several.
    """

    def __init__(self, model: ResNeSt, output_stride: int, out_indices: Sequence[int]):
        super().__init__([dict(num_chs=model.stem.out_channels, reduction=2, module="stem.conv1_3", index=0)])
        for index, name in enumerate(model.parts[1:], 1):
            channels = getattr(model, name)[-1].conv3.out_channels
            self.append(dict(num_chs=channels, reduction=min(2 ** (index + 1), output_stride), module=name, index=index))
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None):
        if isinstance(idx, int):
            return self[idx][key]
        return [self[index][key] for index in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None):
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None):
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None):
        return self.get("module", idx)


class GlobalPool(nn.Module):
    """Maps (N, C, H, W) to vectors (N, C), or (N, 2 * C) where averages and maxima are put side by side ("catavgmax").

    Args:
        pool_type: one of `POOL_TYPES`; "" leaves the maps as they are.
    """

    def __init__(self, pool_type: str):
        super().__init__()
        if pool_type not in POOL_TYPES:
            raise UserError(f"global_pool is {pool_type!r}; supported: {', '.join(map(repr, POOL_TYPES))}")
        self.pool_type = pool_type

    def forward(self, x: Tensor) -> Tensor:
        if self.pool_type == "":
            return x
        if self.pool_type == "avg":
            return F.adaptive_avg_pool2d(x, 1).flatten(1)
        largest = F.adaptive_max_pool2d(x, 1).flatten(1)
        if self.pool_type == "max":
            return largest
        average = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return torch.cat((average, largest), 1) if self.pool_type == "catavgmax" else 0.5 * (average + largest)


class Classifier(ResNeSt):
    """ResNeSt with global pooling, dropout and a linear layer (`linear`).

    Args:
        num_classes: outputs; 0 leaves the linear layer away, and the output is the embedding.
        drop_rate: dropout before the linear layer, in training.
        global_pool: see `GlobalPool`; "" only without classes.
        pretrained_cfg: what belongs to the published weights, see `create_model`.
        arguments: of `ResNeSt`.

    Attributes:
        num_features: channels of the last feature map; head_hidden_size: of the embedding.
        feature_info: see `FeatureInfo`.
    """

    def __init__(self, num_classes: int, drop_rate: float, global_pool: str, pretrained_cfg: dict, **arguments):
        super().__init__(**arguments)
        self.num_features = self.out_feature_channels["res5"]
        self.drop_rate = drop_rate
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.feature_info = FeatureInfo(self, arguments.get("output_stride", 32), range(len(_FEATURES)))
        self.global_pool = GlobalPool(global_pool)
        self.reset_classifier(num_classes)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The linear layer, or its name."""
        return "linear" if name_only else self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a freshly initialised linear layer in the place of the one there is.

        Args:
            num_classes: outputs; 0 for embeddings.
            global_pool: another one of `POOL_TYPES`; None keeps what there is.

        Raises:
            UserError: `num_classes` is no number of classes, or there is no such pooling.
        """
        _check_count("num_classes", num_classes, 0, " (0 gives embeddings)")
        if global_pool is not None:
            self.global_pool = GlobalPool(global_pool)
        if num_classes and not self.global_pool.pool_type:
            raise UserError(f"global_pool is '' (maps instead of vectors), which num_classes {num_classes} cannot be made from")
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * (2 if self.global_pool.pool_type == "catavgmax" else 1)
        self.linear = nn.Identity()
        if num_classes:
            first = self.stem.conv1_1.weight
            self.linear = nn.Linear(self.head_hidden_size, num_classes, device=first.device, dtype=first.dtype)
            nn.init.normal_(self.linear.weight, std=0.01)  # arXiv:1706.02677, section 5.1
            nn.init.zeros_(self.linear.bias)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last feature map and a list of those between, as timm's classifiers give them.

        Args:
            x: images (N, in_chans, H, W).
            indices: which of the maps of stride 2, 4, 8, 16, 32: the last n of them, or a list; None for all.
            norm: does nothing: there is no norm behind the stages.
            stop_early: compute no further than the last map that was asked for; it is then the first result.
            output_fmt: "NCHW".
            intermediates_only: give the list alone.

        Raises:
            UserError: there are no such maps, or not in that format.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt is {output_fmt!r}; supported: 'NCHW'")
        chosen = _checked_indices("indices", len(_FEATURES) if indices is None else indices)
        names = ["res1" if index == 0 else _FEATURES[index] for index in chosen]
        last = _FEATURES[max(chosen)] if stop_early else "res5"
        maps = self.feature_maps(x, names if intermediates_only or last in names else [*names, last])
        between = [maps[name] for name in names]
        return between if intermediates_only else (maps[last], between)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, num_features, H / output_stride, W / output_stride), of images (N, in_chans, H, W)."""
        return self.feature_maps(x, self.wanted)["res5"]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) from the last feature map; with `pre_logits` the embedding (N, head_hidden_size)."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) for normalised images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


class FeatureExtractor(ResNeSt):
    """ResNeSt whose `forward` gives a list of feature maps, the first of them at stride 2, before the max pooling.

    Attributes:
        out_feature_channels, out_feature_strides: of each map, by stage, in the order of the list.
        feature_info: see `FeatureInfo`.
    """

    def __init__(self, out_indices: Sequence[int], pretrained_cfg: dict, **arguments):
        super().__init__(out_features=tuple(_FEATURES[index] for index in out_indices), **arguments)
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.feature_info = FeatureInfo(self, arguments.get("output_stride", 32), out_indices)
        if "stem" in self.out_features:
            self.out_feature_strides["stem"] = 2
            self.wanted[0] = "res1"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (N, channels, H / stride, W / stride), from the largest to the smallest, for images (N, in_chans, H, W)."""
        maps = self.feature_maps(x, self.wanted)
        return [maps[name] for name in self.wanted]


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: int | Sequence[int] = (0, 1, 2, 3, 4),
    output_stride: int = 32,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    norm: Norm = "BN",
    checkpoint_path: str | os.PathLike | None = None,
    new_head: bool | None = None,
    use_ema: bool = True,
    width: float = 1.0,
    drop_block_size: int = 0,
) -> Classifier | FeatureExtractor:
    """Build a ResNeSt by name.

    Args:
        name: see `list_models`; timm's names (`resnest101e`, `resnest101e.in1k`, `hf-hub:timm/resnest101e.in1k`) are known too.
        pretrained: load the published ImageNet weights, downloaded on first use. With a `num_classes` other than 1000 the
            linear layer stays freshly initialised. With other than 3 channels the first convolution is adapted: its
            weights are summed for 1 channel, else repeated and scaled so that the expected response stays the same.
        num_classes: outputs, 1000 unless given; 0 for embeddings (N, num_features).
        in_chans: channels of the images.
        features_only: return a model that gives feature maps instead of logits.
        out_indices: with `features_only`, which of the maps of stride 2, 4, 8, 16, 32; negative ones count from the last. One
            number n is the last n maps.
        output_stride: 32, or 16 or 8 with dilation in place of the last strides, as timm dilates.
        drop_rate: dropout before the linear layer.
        drop_path_rate: stochastic depth: the probability that an image skips the last block in training; it grows linearly from
            0 at the first block.
        global_pool: "avg", "max", "avgmax" (their mean), "catavgmax" (both, side by side) or, with `num_classes` 0, "".
        norm: "BN", "SyncBN", "FrozenBN", "GN" or "".
        checkpoint_path: load this file (or address, see `resolve_weights`) instead; all of it has to fit, but for the head
            where a new one is asked for.
        new_head: leave the linear layer freshly initialised where the file's does not fit or is absent: always (True), never
            (False), or (None) only where `num_classes` was given and the file's head has another number of them.
        use_ema: where the file has averaged weights beside the others, take those.
        width: times the channels of everything; published weights are of 1.
        drop_block_size: side of the squares that DropBlock drops in res4 and res5, once `set_drop_block` has set a rate.

    Returns:
        The model in training mode. `model.pretrained_cfg` says what the published weights expect: `input_size`, `mean`,
        `std`, `crop_pct`, `interpolation`, and where they come from (`source`).

    Raises:
        UserError: unknown name, an argument that makes no such network, weights that cannot be had or do not fit.
    """
    variant = find_variant(name)
    classes = IMAGENET_CLASSES if num_classes is None else num_classes
    _check_count("num_classes", classes, 0, " (0 gives embeddings)")
    _check_count("in_chans", in_chans, 1)
    for argument, value in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1:
            raise UserError(f"{argument} is {value!r}, expected a number that is at least 0 and less than 1")
    for argument, value in (("pretrained", pretrained), ("features_only", features_only), ("use_ema", use_ema)):
        if not isinstance(value, bool):
            raise UserError(f"{argument} is {value!r}, expected True or False")
    if new_head is not None and not isinstance(new_head, bool):
        raise UserError(f"new_head is {new_head!r}, expected True, False or None")
    if checkpoint_path is not None and not isinstance(checkpoint_path, (str, os.PathLike)):
        raise UserError(f"checkpoint_path is a {type(checkpoint_path).__name__}, expected a path or an address")
    if pretrained and checkpoint_path:
        raise UserError("pretrained and checkpoint_path are both given: choose one")
    arguments = dict(
        **variant.network,
        in_channels=in_chans,
        norm=norm,
        output_stride=output_stride,
        dilation_style="timm",
        drop_path_rate=drop_path_rate,
        drop_block_size=drop_block_size,
    )
    if width != 1:
        if isinstance(width, bool) or not isinstance(width, Real) or not 0 < width <= 8:
            raise UserError(f"width is {width!r}, expected a number above 0, up to 8")
        if pretrained:
            raise UserError(f"width is {width:g}, and the published weights are of models of width 1")
        for name in ("stem_width", "bottleneck_width", "res2_out_channels"):
            arguments[name] = max(1, round(width * arguments.get(name, RES2_OUT_CHANNELS)))
    if features_only:
        model = FeatureExtractor(_checked_indices("out_indices", out_indices), _pretrained_cfg(variant), **arguments)
    else:
        model = Classifier(classes, drop_rate, global_pool, _pretrained_cfg(variant), out_features=("res5",), **arguments)
    if pretrained:
        path = resolve_weights(f"resnest://{variant.name}")
        load_classifier(model, variant, path, adapt_to=in_chans, new_head=classes != IMAGENET_CLASSES)
    elif checkpoint_path:
        _check_is_of(variant, checkpoint_path)  # says more than that a damaged file of another variant is damaged
        new_head = None if new_head is None and num_classes is not None else bool(new_head)
        load_classifier(model, variant, resolve_weights(checkpoint_path), new_head=new_head, use_ema=use_ema)
    return model


def _check_count(name: str, value: int, least: int, hint: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UserError(f"{name} is {value!r}, expected a whole number of at least {least}{hint}")


def _checked_indices(name: str, indices: int | Sequence[int]) -> list[int]:
    """Indices of feature maps, from small to large; of a number n the last n."""
    count = len(_FEATURES)
    if isinstance(indices, Integral) and not isinstance(indices, bool):
        if not 1 <= indices <= count:
            raise UserError(f"{name} is {indices}, expected a list of indices, or the number of the last maps, 1 to {count}")
        return list(range(count - indices, count))
    try:
        indices = [operator.index(index) for index in indices]
    except TypeError:
        raise UserError(f"{name} is {indices!r}, expected a list of indices of feature maps such as (1, 2, 3, 4)") from None
    if not indices or any(not -count <= index < count for index in indices):
        raise UserError(f"{name} {indices} are not possible: there are {count} feature maps, 0 to {count - 1}")
    positive = sorted(index % count for index in indices)
    if len(set(positive)) < len(positive):
        raise UserError(f"{name} {indices} name a feature map twice")
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


def load_classifier(
    model: nn.Module, variant: Variant, path: str, adapt_to: int = 3, new_head: bool | None = False, use_ema: bool = True
) -> None:
    """Load a file of weights into what `create_model` has made, whose arguments these are.

    Args:
        adapt_to: channels of the images.

    Raises:
        UserError: the file cannot be used or does not fit.
    """
    _check_is_of(variant, path)
    weights = read_weights(path, use_ema=use_ema)
    backbone = dict(weights.backbone)
    first = "stem.conv1_1.weight"
    if first in backbone and adapt_to != 3:
        backbone[first] = _adapted(backbone[first], adapt_to)

    head = {name: value for name, value in model.state_dict().items() if name.startswith("linear.")}
    fits = all(name in backbone and backbone[name].shape == value.shape for name, value in head.items())
    if head and not fits:
        found = {name: backbone.pop(name) for name in list(backbone) if name.startswith("linear.")}
        classes = len(found["linear.weight"]) if found.keys() == head.keys() else None
        if new_head or (new_head is None and classes is not None and classes != model.num_classes):
            has = f"a head of {classes} classes" if classes else "no head"
            level = logging.INFO if new_head else logging.WARNING  # asked for in so many words, or inferred
            logger.log(level, "weights %s have %s, the model %d: its head is freshly initialised", path, has, model.num_classes)
        elif classes is not None:
            backbone |= found  # whose shapes the report below names
        else:
            raise UserError(f"weights {path}: {_headless(weights, found)}")
    report = load_into(model, replace(weights, backbone=backbone), new_head=not fits)
    logger.info("Loaded %s", report)


def _headless(weights: Weights, found: dict[str, Tensor]) -> str:
    heads = [name for name in weights.rest if re.search(r"(^|[._])(fc|linear|logits|heads?|classifier)\d*\.", name)]
    has = [*(weights.origin[name] for name in found), *heads][:4]
    return (
        "they have no classification head, linear.weight and linear.bias or fc.weight and fc.bias"
        + (f" (but {', '.join(has)})" if has else "")
        + ": ask for num_classes=0 or features_only=True, which need none, or new_head=True to train one"
    )


def _adapted(weight: Tensor, channels: int) -> Tensor:
    """First convolution (C, 3, 3, 3) for images of other channels, as timm does it: (C, channels, 3, 3)."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    known = weight.shape[1]
    return weight.repeat(1, math.ceil(channels / known), 1, 1)[:, :channels] * (known / channels)


def transforms_for(model: nn.Module, crop: str = "resize") -> Callable:
    """The torchvision transform from a PIL image to the normalised tensor (3, H, W) that a model's weights expect.

    Images of any mode become RGB first, as `to_eight_bits` says; what that refuses is a `UserError` when the transform is used.

    Args:
        crop: "resize", timm's evaluation: resize the short side, crop the centre; or "authors", theirs, see `AuthorsCenterCrop`.

    Raises:
        UserError: there is no such crop, the model was not made by `create_model`, or does not take three channels.
    """
    from torchvision import transforms

    from resnest_det.data.class_transforms import TEST_CROPS, AuthorsCenterCrop

    if crop not in TEST_CROPS:
        raise UserError(f"crop is {crop!r}; supported: {', '.join(map(repr, TEST_CROPS))}")
    if not hasattr(model, "pretrained_cfg"):
        raise UserError(f"a {type(model).__name__} has no pretrained_cfg: transforms_for takes what create_model returns")
    channels = model.stem.conv1_1.in_channels
    if channels != 3:
        raise UserError(f"the model takes {channels} channels; the published mean and std are of the 3 of RGB")
    cfg = model.pretrained_cfg
    size = cfg["input_size"][-1]
    if crop == "authors":
        centre = [AuthorsCenterCrop(size)]
    else:
        interpolation = transforms.InterpolationMode(cfg["interpolation"])
        centre = [transforms.Resize(math.floor(size / cfg["crop_pct"]), interpolation), transforms.CenterCrop(size)]
    normalize = transforms.Normalize(torch.tensor(cfg["mean"]), torch.tensor(cfg["std"]))
    return transforms.Compose([to_eight_bits, *centre, transforms.ToTensor(), normalize])
