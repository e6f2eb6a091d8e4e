"""Semantic models of other libraries' families, filled: configurations, images and our logits."""

import numpy as np
import torch
from torch import nn

from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.detector.semantic_augmentation import PixelViews
from tests.helpers.fill import fill, uniform

CLASSES = 5
SIZES = ((97, 131), (64, 96), (75, 50))  # (height, width): odd, of the stride, and not of it
SAMPLES = 2000
AUTHORS = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_resnest_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": ["res4", "res5"],
    "MODEL.RESNETS.RES4_DILATION": 2,
    "MODEL.RESNETS.RES5_DILATION": 4,
    "MODEL.RESNETS.DILATION_STYLE": "authors",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.STYLE": "authors",
    "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": True,
    "MODEL.SEM_SEG_HEAD.AUX_HEAD.ENABLED": True,
    "MODEL.DEVICE": "cpu",
}
OF_KIND = {
    "fcn": {"MODEL.SEM_SEG_HEAD.NAME": "FCNHead", "MODEL.SEM_SEG_HEAD.CONVS_DIM": 512},
    "deeplab": {
        "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3Head",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
        "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [12, 24, 36],
    },
}


def authors_config(kind: str, depth: int, **more):
    """Ours for the authors' model of a kind, "fcn" or "deeplab"."""
    values = AUTHORS | OF_KIND[kind] | {"MODEL.RESNETS.DEPTH": depth} | more
    return load_config("semantic_ResNeSt50_FPN", [item for pair in values.items() for item in pair])


MMSEG_KINDS = {
    "fcn": {"NAME": "FCNHead"},
    "pspnet": {"NAME": "PSPHead"},
    "deeplabv3": {"NAME": "DeepLabV3Head", "ASPP_CHANNELS": 512, "ASPP_DILATIONS": [12, 24, 36], "ASPP_DROPOUT": 0.0},
    "deeplabv3plus": {
        "NAME": "DeepLabV3PlusHead",
        "IN_FEATURES": ["res2", "res5"],
        "COMMON_STRIDE": 4,
        "ASPP_CHANNELS": 512,
        "ASPP_DILATIONS": [12, 24, 36],
        "ASPP_DROPOUT": 0.0,
        "USE_DEPTHWISE_SEPARABLE_CONV": True,
    },
}


def mmseg_config(kind: str, depth: int):
    """Ours for MMSegmentation's model of a kind in `MMSEG_KINDS`, as its configs/resnest have it."""
    head = {"STYLE": "mmseg", "CONVS_DIM": 512, "ALIGN_CORNERS": False, "DROPOUT": 0.1} | MMSEG_KINDS[kind]
    backbone = {"DILATION_STYLE": "mmseg", "OUT_FEATURES": ["res2", "res4", "res5"]}
    keys = {f"SEM_SEG_HEAD.{key}": value for key, value in head.items()} | {f"RESNETS.{key}": v for key, v in backbone.items()}
    return authors_config("fcn", depth, **{f"MODEL.{key}": value for key, value in keys.items()})


def build_filled(cfg) -> nn.Module:
    model = build_model(cfg).eval()
    fill(model)
    return model


def network_input(size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) float32, as an image is after its normalisation."""
    return torch.from_numpy(2 * uniform("image", (3, *size)))


def our_logits(kind: str, cfg) -> dict[str, np.ndarray]:
    """Logits and auxiliary logits of our filled model, of an image of each size; names begin with `kind`."""
    model = build_filled(cfg)
    found = {}
    with torch.no_grad():
        for size in SIZES:
            sample = {"image": network_input(size)}
            features, head = model.backbone(model.preprocess([sample])[0]), model.auxiliary_head
            auxiliary = nn.functional.interpolate(head(features), size, mode="bilinear", align_corners=head.align_corners)
            found[f"{kind}/{size[0]}x{size[1]}/logits"] = model([sample])[0]["sem_seg"].numpy()
            found[f"{kind}/{size[0]}x{size[1]}/auxiliary"] = auxiliary[0].numpy()
    return found


def sampled(values: np.ndarray) -> np.ndarray:
    flat = values.ravel()
    return flat[np.linspace(0, flat.size - 1, SAMPLES).astype(int)]


# How the authors evaluate, at a size for tests: base 520 and crop 480 there.
EVALUATED = PixelViews((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), long_side=80, flip=True, window=(64, 64), combine="exponentials")


def evaluated_config():
    """Ours for their DeepLab, with the pixel mean that they pad windows with."""
    mean, std = ([255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return authors_config("deeplab", 14, **{"MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": std})


def evaluated_image(name: str) -> torch.Tensor:
    """(3, H, W) uint8: squares of colors."""
    height, width = {"wide": (70, 101), "high": (115, 61), "small": (40, 44)}[name]
    colors = 127.5 * (1 + uniform(name, (3, height // 9 + 1, width // 9 + 1)))
    return torch.from_numpy(colors.repeat(9, 1).repeat(9, 2)[:, :height, :width].clip(0, 255).astype(np.uint8))
