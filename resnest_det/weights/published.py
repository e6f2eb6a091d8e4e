"""What is published of ResNeSt: ImageNet weights, detector and segmentation checkpoints, with their input and accuracy.

Addresses die and move, so every file is known by its name and by the first digits of its digest, and has several
mirrors where several are known.
"""

import re
from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in 0 ... 1
IMAGENET_STD = (0.229, 0.224, 0.225)

_AUTHORS = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/"
_AUTHORS_STORE = "https://s3.us-west-1.wasabisys.com/resnest/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/"


# That of the `.params` file in an archive: Gluon's.
SHA1_OF_PARAMS = "sha1 of .params"


@dataclass(frozen=True)
class WeightFile:
    """A published file; at an address that ends in `.zip` another one lies in an archive, alone.

    Attributes:
        filename: its name.
        mirrors: its addresses.
        digits: the start of its digest (hex; "" if unpublished).
        algorithm: of the digest: "sha256", "sha1", or `SHA1_OF_PARAMS`.
    """

    filename: str
    mirrors: tuple[str, ...]
    digits: str
    algorithm: str = "sha256"


@dataclass(frozen=True)
class ImageNetWeights:
    """The ImageNet weights of a variant, and the input of their evaluation.

    Attributes:
        name: the variant's, by the authors.
        aliases: timm's name, and its name with the tag of the weights.
        image_size: pixels a side; crop: the part of the resized image's side that is kept; interpolation: of the resizing.
        top1, top5: published accuracy in percent; `top5` is None where none was published.
        file: the file.
    """

    name: str
    aliases: tuple[str, ...]
    image_size: int
    crop: float
    interpolation: str
    top1: float
    top5: float | None
    file: WeightFile


def _file(name: str, digits: str, *, authors: bool, timm_release: str | None, hub: str | None) -> WeightFile:
    filename = f"{name}-{digits}.pth"
    mirrors = []
    if authors:
        mirrors += [_AUTHORS + filename, f"{_AUTHORS_STORE}torch/{filename}"]
    if timm_release:
        mirrors.append(f"{_TIMM}{timm_release}/{filename}")
    if hub:
        mirrors.append(f"hf://timm/{hub}")
    return WeightFile(filename, tuple(mirrors), digits)


def _standard(
    name: str, timm_name: str, size: int, crop: float, interpolation: str, top1: float, top5: float, digits: str
) -> ImageNetWeights:
    by_authors = name not in ("resnest14", "resnest26")  # these two were published for Gluon and converted by timm
    hub = f"{timm_name}.in1k" if by_authors else f"{timm_name}.gluon_in1k"
    file = _file(
        name if by_authors else f"gluon_{name}",
        digits,
        authors=by_authors,
        timm_release="v0.1-resnest" if by_authors else "v0.1-weights",
        hub=hub,
    )
    return ImageNetWeights(name, (timm_name, hub), size, crop, interpolation, top1, top5, file)


def _fast(setting: str, top1: float, top5: float | None, digits: str, in_timm: bool = False) -> ImageNetWeights:
    name = f"resnest50_fast_{setting}"
    timm_name, hub = f"resnest50d_{setting}", f"resnest50d_{setting}.in1k"
    file = _file(name, digits, authors=True, timm_release="v0.1-resnest" if in_timm else None, hub=hub if in_timm else None)
    return ImageNetWeights(
        name, (timm_name, hub) if in_timm else (), 224, 0.875, "bicubic" if in_timm else "bilinear", top1, top5, file
    )


IMAGENET_WEIGHTS: dict[str, ImageNetWeights] = {
    weights.name: weights
    for weights in (
        _standard("resnest14", "resnest14d", 224, 0.875, "bilinear", 75.51, 92.52, "9c8fe254"),
        _standard("resnest26", "resnest26d", 224, 0.875, "bilinear", 78.48, 94.30, "50eb607c"),
        _standard("resnest50", "resnest50d", 224, 0.875, "bilinear", 81.03, 95.38, "528c19ca"),
        _standard("resnest101", "resnest101e", 256, 0.875, "bilinear", 82.83, 96.31, "22405ba7"),
        _standard("resnest200", "resnest200e", 320, 0.909, "bicubic", 83.84, 96.89, "75117900"),
        _standard("resnest269", "resnest269e", 416, 0.928, "bicubic", 84.54, 96.99, "0cc87c48"),
        _fast("1s1x64d", 80.33, None, "d8fbf808"),
        _fast("2s1x64d", 80.53, None, "44938639"),
        _fast("4s1x64d", 80.76, None, "f74f3fc3"),
        _fast("1s2x40d", 80.59, None, "32830b84"),
        _fast("2s2x40d", 80.61, None, "9d126481"),
        _fast("4s2x40d", 81.14, 95.55, "41d14ed0", in_timm=True),
        _fast("1s4x24d", 80.99, 95.33, "d4a4f76f", in_timm=True),
    )
}

ALIASES: dict[str, str] = {alias: weights.name for weights in IMAGENET_WEIGHTS.values() for alias in weights.aliases}

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


def digits_in(filename: str) -> str:
    """The digits of the digest at the end of a published file's name, `NAME-0123abcd.pth`, or ""."""
    digits = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", filename)
    return digits.group(1) if digits else ""


def _detection_file(filename: str) -> WeightFile:
    return WeightFile(filename, (f"{_AUTHORS_STORE}detectron/{filename}",), digits_in(filename))


# Whole semantic models: their sha1, by the authors' names (PyTorch-Encoding, encoding/models/model_store.py).
_SEGMENTATION_SHA1 = {
    "fcn_resnest50_ade": "4aba491aaf8e4866a9c9981b210e3e3266ac1f2a",
    "deeplab_resnest50_ade": "2225f09d0f40b9a168d9091652194bc35ec2a5a9",
    "deeplab_resnest101_ade": "06ca799c8cc148fe0fafb5b6d052052935aa3cc8",
    "deeplab_resnest200_ade": "7b9e7d3e6f0e2c763c7d77cad14d306c0a31fe05",
    "deeplab_resnest269_ade": "0074dd10a6e6696f6f521653fb98224e75955496",
    "fcn_resnest50_pcontext": "77a2161deeb1564e8b9c41a4bb7a3f33998b00ad",
    "deeplab_resnest50_pcontext": "08dccbc4f4694baab631e037a374d76d8108c61f",
    "deeplab_resnest101_pcontext": "faf5841853aae64bd965a7bdc2cdc6e7a2b5d898",
    "deeplab_resnest200_pcontext": "fe76a26551dd5dcf2d474fd37cba99d43f6e984e",
    "deeplab_resnest269_pcontext": "b661fd26c49656e01e9487cd9245babb12f37449",
}
# MMSegmentation's, with the file's folder and name (configs/resnest/metafile.yaml); the digits are of the sha256.
_MMSEG_STORE = "https://download.openmmlab.com/mmsegmentation/v0.5/resnest/"
_MMSEG_FILES = {
    "fcn_s101-d8_512x1024_80k_cityscapes": "20200807_140631-f8d155b3",
    "pspnet_s101-d8_512x1024_80k_cityscapes": "20200807_140631-c75f3b99",
    "deeplabv3_s101-d8_512x1024_80k_cityscapes": "20200807_144429-b73c4270",
    "deeplabv3plus_s101-d8_512x1024_80k_cityscapes": "20200807_144429-1239eb43",
    "fcn_s101-d8_512x512_160k_ade20k": "20200807_145416-d3160329",
    "pspnet_s101-d8_512x512_160k_ade20k": "20200807_145416-a6daa92a",
    "deeplabv3_s101-d8_512x512_160k_ade20k": "20200807_144503-17ecabe5",
    "deeplabv3plus_s101-d8_512x512_160k_ade20k": "20200807_144503-27b26226",
}


def _segmentation_file(name: str, sha1: str) -> WeightFile:
    stem = f"{name}-{sha1[:8]}"
    return WeightFile(f"{stem}.pth", (f"https://s3.us-west-1.wasabisys.com/encoding/models/{stem}.zip",), sha1, "sha1")


def _mmseg_file(name: str, version: str) -> WeightFile:
    filename = f"{name}_{version}.pth"
    return WeightFile(filename, (f"{_MMSEG_STORE}{name}/{filename}",), digits_in(filename))


WEIGHT_FILES: dict[str, WeightFile] = {
    **{weights.name: weights.file for weights in IMAGENET_WEIGHTS.values()},
    **{re.sub(r"(-[0-9a-f]{8})?\.pth$", "", filename): _detection_file(filename) for filename in _DETECTION_FILES},
    **{name: _segmentation_file(name, sha1) for name, sha1 in _SEGMENTATION_SHA1.items()},
    **{name: _mmseg_file(name, version) for name, version in _MMSEG_FILES.items()},
}

# Gluon's, by the `model_store.py` of GluonCV 0.10 and of the authors' package, which alone has the fast variants.
_GLUON_STORE = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/models/"
_AUTHORS_GLUON = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step2/"
_GLUON_DIGESTS = {
    "resnest14": "7e0b0cae2fd7e9084d1e498b858af1429a6eb1cb",
    "resnest26": "364590740605b6a2b95f5bb77436d781a817436f",
    "resnest50": "bcfefe1dd1dd1ef5cfed5563123c1490ea37b42e",
    "resnest101": "5da943b3230f071525a98639945a6b3b3a45ac95",
    "resnest200": "0c5d117df664ace220aa6fc2922c094bb079d381",
    "resnest269": "11ae7f5da2bcdbad05ba7e84f9b74383e717f3e3",
    "resnest50_fast_1s1x64d": "5e16dbe56f1fba8e1bc2faddd91f874bfbd74193",
    "resnest50_fast_2s1x64d": "85eb779a5e313d74b5e5390dae02aa8082a0f469",
    "resnest50_fast_4s1x64d": "3f215532c6d8e07a10df116309993d4479fc3e4b",
    "resnest50_fast_1s2x40d": "af3514c2ec757a3a9666a75b82f142ed47d55bee",
    "resnest50_fast_2s2x40d": "2db13245aa4967cf5e8617cb4911880dd41628a4",
    "resnest50_fast_4s2x40d": "b24d515797832e02da4da9c8a15effd5e44cfb56",
    "resnest50_fast_1s4x24d": "7318153ddb5e542a20cc6c58192f3c6209cff9ed",
    "deeplab_resnest50_ade": "a8312db6e30a464151580f2bda83479786455724",
    "deeplab_resnest101_ade": "6d05c630fb7acb38615f7f4d360fb90f47b25042",
    "deeplab_resnest200_ade": "9134a6f7d1399b549d5803d8faed3dfc74efc0d8",
    "deeplab_resnest269_ade": "d45b33dedf4cca13b8147213c5360e30f93685bd",
    "faster_rcnn_fpn_syncbn_resnest50_coco": "6df46961827647d418b11ffaf616a6a60d9dd16e",
    "faster_rcnn_fpn_syncbn_resnest101_coco": "baebfa1b7d7f56dd33a7687efea4b014736bd791",
    "faster_rcnn_fpn_syncbn_resnest269_coco": "b7d778f58921e459a6af200f6a323d6fe67069b9",
}


def _gluon_file(name: str, digest: str) -> WeightFile:
    filename = f"{name}-{digest[:8]}.zip"
    by_authors = name in IMAGENET_WEIGHTS and name not in ("resnest14", "resnest26")
    stores = [_GLUON_STORE] if "_fast_" not in name else []
    stores += [_AUTHORS_GLUON] if by_authors else []
    return WeightFile(filename, tuple(store + filename for store in stores), digest, SHA1_OF_PARAMS)


GLUON_FILES: dict[str, WeightFile] = {name: _gluon_file(name, digest) for name, digest in _GLUON_DIGESTS.items()}
