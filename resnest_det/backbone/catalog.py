"""What is published of ResNeSt: the 13 variants of the family, their ImageNet weights, and detector checkpoints.

Addresses die and move, so every file is known by its name and by the first digits of its sha256, and has several
mirrors where several are known.
"""

import re
from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in 0 ... 1
IMAGENET_STD = (0.229, 0.224, 0.225)

_AUTHORS = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
_AUTHORS_STORE = "https://s3.us-west-1.wasabisys.com/resnest/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"


@dataclass(frozen=True)
class WeightFile:
    """A published file: what it is called, where it can be found, and the start of its sha256 (hex; "" if unpublished)."""

    filename: str
    mirrors: tuple[str, ...]
    sha256_prefix: str


@dataclass(frozen=True)
class Variant:
    """A member of the family: the shape of the network, its published weights, and the input they were evaluated on.

    Attributes:
        name: the authors' name.
        aliases: timm's name, and its name with the tag of the weights.
        blocks, stem_width, radix, groups, bottleneck_width, avd_first: see `resnest.ResNeSt`.
        image_size: pixels a side; crop: the part of the resized image's side that is kept; interpolation: of the resizing.
        top1, top5: published ImageNet accuracy in percent; `top5` is None where none was published.
        weights: the file with ImageNet weights.
    """

    name: str
    aliases: tuple[str, ...]
    blocks: tuple[int, ...]
    stem_width: int
    radix: int
    groups: int
    bottleneck_width: int
    avd_first: bool
    image_size: int
    crop: float
    interpolation: str
    top1: float
    top5: float | None
    weights: WeightFile


def _weights(name: str, digits: str, *, authors: bool, timm_release: str | None, hub: str | None) -> WeightFile:
    filename = f"{name}-{digits}.pth"
    mirrors = []
    if authors:
        mirrors += [_AUTHORS + filename, f"{_AUTHORS_STORE}torch/{filename}"]
    if timm_release:
        mirrors.append(f"{_TIMM}{timm_release}/{filename}")
    if hub:
        mirrors.append(f"hf://timm/{hub}")
    return WeightFile(filename, tuple(mirrors), digits)


def _whole(name, timm_name, blocks, stem_width, size, crop, interpolation, top1, top5, digits) -> Variant:
    by_authors = name not in ("resnest14", "resnest26")  # those were published for Gluon, and converted by timm
    hub = f"{timm_name}.in1k" if by_authors else f"{timm_name}.gluon_in1k"
    weights = _weights(name if by_authors else f"gluon_{name}", digits, authors=by_authors,
                       timm_release="v0.1-resnest" if by_authors else "v0.1-weights", hub=hub)
    return Variant(name, (timm_name, hub), blocks, stem_width, 2, 1, 64, False, size, crop, interpolation, top1, top5, weights)


def _fast(setting, radix, groups, width, top1, top5, digits, in_timm=False) -> Variant:
    name = f"resnest50_fast_{setting}"
    timm_name, hub = f"resnest50d_{setting}", f"resnest50d_{setting}.in1k"
    weights = _weights(name, digits, authors=True, timm_release="v0.1-resnest" if in_timm else None, hub=hub if in_timm else None)
    return Variant(name, (timm_name, hub) if in_timm else (), (3, 4, 6, 3), 32, radix, groups, width, True, 224, 0.875,
                   "bicubic" if in_timm else "bilinear", top1, top5, weights)


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in (
    _whole("resnest14", "resnest14d", (1, 1, 1, 1), 32, 224, 0.875, "bilinear", 75.51, 92.52, "9c8fe254"),
    _whole("resnest26", "resnest26d", (2, 2, 2, 2), 32, 224, 0.875, "bilinear", 78.48, 94.30, "50eb607c"),
    _whole("resnest50", "resnest50d", (3, 4, 6, 3), 32, 224, 0.875, "bilinear", 81.03, 95.38, "528c19ca"),
    _whole("resnest101", "resnest101e", (3, 4, 23, 3), 64, 256, 0.875, "bilinear", 82.83, 96.31, "22405ba7"),
    _whole("resnest200", "resnest200e", (3, 24, 36, 3), 64, 320, 0.909, "bicubic", 83.84, 96.89, "75117900"),
    _whole("resnest269", "resnest269e", (3, 30, 48, 8), 64, 416, 0.928, "bicubic", 84.54, 96.99, "0cc87c48"),
    _fast("1s1x64d", 1, 1, 64, 80.33, None, "d8fbf808"),
    _fast("2s1x64d", 2, 1, 64, 80.53, None, "44938639"),
    _fast("4s1x64d", 4, 1, 64, 80.76, None, "f74f3fc3"),
    _fast("1s2x40d", 1, 2, 40, 80.59, None, "32830b84"),
    _fast("2s2x40d", 2, 2, 40, 80.61, None, "9d126481"),
    _fast("4s2x40d", 4, 2, 40, 81.14, 95.55, "41d14ed0", in_timm=True),
    _fast("1s4x24d", 1, 4, 24, 80.99, 95.33, "d4a4f76f", in_timm=True),
)}

ALIASES: dict[str, str] = {alias: variant.name for variant in VARIANTS.values() for alias in variant.aliases}

# Backbones to start a detector from, then detectors; the names are the authors'.
_DETECTION_FILES = (
    "resnest50_detectron-255b5649.pth",
    "resnest101_detectron-486f69a8.pth",
    "resnest200_detectron-02644020.pth",
    "resnest269_detectron-69df4066.pth",
    "faster_rcnn_R_50_FPN_syncbn_range-scale_1x-fde56e2b.pth",
    "faster_rcnn_R_101_FPN_syncbn_range-scale_1x-57c73356.pth",
    "faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x-ad123c0b.pth",
    "faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x.pth",
    "faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-d8f284b6.pth",
    "faster_cascade_rcnn_R_50_FPN_syncbn_range-scale_1x-3c7f2ef2.pth",
    "faster_cascade_rcnn_R_101_FPN_syncbn_range-scale_1x-4073359b.pth",
    "faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x-e9955232.pth",
    "faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-3627ef78.pth",
    "faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x-1be2a87e.pth",
    "mask_rcnn_R_50_FPN_syncbn_1x-4939bd58.pth",
    "mask_rcnn_R_101_FPN_syncbn_1x-55493cc2.pth",
    "mask_rcnn_ResNeSt_50_FPN_syncBN_1x-f442d863.pth",
    "mask_rcnn_ResNeSt_101_FPN_syncBN_1x-528502c6.pth",
    "mask_cascade_rcnn_R_50_FPN_syncbn_1x-03310c9b.pth",
    "mask_cascade_rcnn_R_101_FPN_syncbn_1x-8cec1631.pth",
    "mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x-c58bd325.pth",
    "mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x-62448b9c.pth",
    "mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x.pth",
    "mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x-e1901134.pth",
    "panoptic_ResNeSt_200_FPN_syncBN_tricks_3x-43f8b731.pth",
)


def sha256_prefix_in(filename: str) -> str:
    """The digits of the sha256 that a published file's name ends with, `NAME-0123abcd.pth`, or ""."""
    digits = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", filename)
    return digits.group(1) if digits else ""


def _detection_file(filename: str) -> WeightFile:
    return WeightFile(filename, (f"{_AUTHORS_STORE}detectron/{filename}",), sha256_prefix_in(filename))


WEIGHT_FILES: dict[str, WeightFile] = {
    **{variant.name: variant.weights for variant in VARIANTS.values()},
    **{re.sub(r"(-[0-9a-f]{8})?\.pth$", "", filename): _detection_file(filename) for filename in _DETECTION_FILES},
}

@dataclass(frozen=True)
class TrainedDetector:
    """A detector that the authors trained: its weights, a name in `WEIGHT_FILES`, and what they published (COCO val2017, %)."""

    weights: str
    box_ap: float
    mask_ap: float | None = None
    panoptic_quality: float | None = None


# By recipe.
TRAINED_DETECTORS: dict[str, TrainedDetector] = {
    "faster_rcnn_ResNet50_FPN": TrainedDetector("faster_rcnn_R_50_FPN_syncbn_range-scale_1x", 39.25),
    "faster_rcnn_ResNet101_FPN": TrainedDetector("faster_rcnn_R_101_FPN_syncbn_range-scale_1x", 41.37),
    "faster_rcnn_ResNeSt50_FPN": TrainedDetector("faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x", 42.33),
    "faster_rcnn_ResNeSt50_FPN_dcn": TrainedDetector("faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x", 44.11),
    "faster_rcnn_ResNeSt101_FPN": TrainedDetector("faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x", 44.72),
    "cascade_rcnn_ResNet50_FPN": TrainedDetector("faster_cascade_rcnn_R_50_FPN_syncbn_range-scale_1x", 42.52),
    "cascade_rcnn_ResNet101_FPN": TrainedDetector("faster_cascade_rcnn_R_101_FPN_syncbn_range-scale_1x", 44.03),
    "cascade_rcnn_ResNeSt50_FPN": TrainedDetector("faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x", 45.41),
    "cascade_rcnn_ResNeSt101_FPN": TrainedDetector("faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x", 47.50),
    "cascade_rcnn_ResNeSt200_FPN": TrainedDetector("faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x", 49.03),
    "mask_rcnn_ResNet50_FPN": TrainedDetector("mask_rcnn_R_50_FPN_syncbn_1x", 39.97, 36.05),
    "mask_rcnn_ResNet101_FPN": TrainedDetector("mask_rcnn_R_101_FPN_syncbn_1x", 41.78, 37.51),
    "mask_rcnn_ResNeSt50_FPN": TrainedDetector("mask_rcnn_ResNeSt_50_FPN_syncBN_1x", 42.81, 38.14),
    "mask_rcnn_ResNeSt101_FPN": TrainedDetector("mask_rcnn_ResNeSt_101_FPN_syncBN_1x", 45.75, 40.65),
    "cascade_mask_rcnn_ResNet50_FPN": TrainedDetector("mask_cascade_rcnn_R_50_FPN_syncbn_1x", 43.06, 37.19),
    "cascade_mask_rcnn_ResNet101_FPN": TrainedDetector("mask_cascade_rcnn_R_101_FPN_syncbn_1x", 44.79, 38.52),
    "cascade_mask_rcnn_ResNeSt50_FPN": TrainedDetector("mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x", 46.19, 39.55),
    "cascade_mask_rcnn_ResNeSt101_FPN": TrainedDetector("mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x", 48.30, 41.56),
    "cascade_mask_rcnn_ResNeSt200_FPN_3x": TrainedDetector(
        "mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x", 50.54, 44.21),
    "cascade_mask_rcnn_ResNeSt200_FPN_dcn_3x": TrainedDetector(
        "mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x", 50.91, 44.50),
    "panoptic_cascade_ResNeSt200_FPN_3x": TrainedDetector("panoptic_ResNeSt_200_FPN_syncBN_tricks_3x", 51.00, 43.68, 47.90),
}
