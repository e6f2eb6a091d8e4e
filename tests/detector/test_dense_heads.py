"""Semantic models on dilated networks: the authors' (golden files), and what their heads and losses do beside that."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnest_det.configuration.model import assemble_model, build_model, check_batch_norm
from resnest_det.configuration.reading import load_config
from resnest_det.detector.dense_heads import DeepLabV3Head
from resnest_det.detector.pixel_loss import PixelLoss
from resnest_det.detector.pooling_pyramid import AsppSettings
from resnest_det.errors import UserError
from resnest_det.weights.segmentor_names import segmentor_heads
from resnest_det.weights.weights import weights_of
from tests.helpers.segmentation_cases import CLASSES, MMSEG_KINDS, OF_KIND, authors_config, mmseg_config, our_logits, sampled

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {"authors": authors_config, "mmseg": mmseg_config}
SMALL = {"MODEL.RESNETS.WIDTH_PER_GROUP": 16, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32}


def small(name: str, **keys):
    """A model of the authors' style and depth 14, with the head of a name and other keys under MODEL.SEM_SEG_HEAD."""
    head = {"NAME": name, "CONVS_DIM": 32} | ({"ASPP_CHANNELS": 32} if "DeepLab" in name else {}) | keys
    return authors_config("fcn", 14, **SMALL, **{f"MODEL.SEM_SEG_HEAD.{key}": value for key, value in head.items()})


def batch(sizes=((37, 61), (50, 42)), classes: int = CLASSES) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, *size), generator=generator).float() / 255,
            "target": {"sem_seg": torch.randint(0, classes, size, generator=generator, dtype=torch.uint8)},
        }
        for size in sizes
    ]


@pytest.mark.parametrize("family, kind", [("authors", kind) for kind in OF_KIND] + [("mmseg", kind) for kind in MMSEG_KINDS])
def test_logits_equal_the_familys(family, kind):
    """Their own classes gave the numbers; also at sizes that the stride does not divide."""
    ours = our_logits(kind, CONFIGS[family](kind, 14))
    with np.load(GOLDEN / f"{family}_segmentation.npz") as expected:
        names = [name for name in expected.files if name.startswith(f"{kind}/") and not name.endswith("largest")]
        assert set(names) == set(ours)
        for name in names:
            difference = np.abs(sampled(ours[name]) - expected[name]).max()
            assert difference <= 1e-5 * expected[f"{name}/largest"], name


@pytest.mark.parametrize(
    "family, model",
    [
        ("authors", f"{kind}_resnest{depth}")
        for kind, depth in (("fcn", 50), *(("deeplab", depth) for depth in (50, 101, 200, 269)))
    ]
    + [("mmseg", f"{kind}_resnest101") for kind in MMSEG_KINDS],
)
def test_every_parameter_of_the_familys_files_has_its_place(family, model):
    listed = json.loads(gzip.decompress((GOLDEN / f"{family}_segmentation_parameters.json.gz").read_bytes()))[model]
    kind, depth = model.split("_resnest")
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in listed.items()}
        ours = assemble_model(CONFIGS[family](kind, int(depth))).state_dict()
    weights = weights_of(theirs, model)
    backbone = {f"backbone.{name}": value for name, value in weights.backbone.items() if not name.startswith("linear.")}
    found = {name: tuple(value.shape) for name, value in (backbone | weights.heads).items()}
    assert found == {name: tuple(value.shape) for name, value in ours.items()}
    assert weights.family == family and set(weights.rest) == {weights.origin[name] for name in weights.heads}


def test_a_file_without_known_heads_has_none():
    assert segmentor_heads({"backbone.stem.0.weight": torch.zeros(1), "head.fc.weight": torch.zeros(1)}) == ({}, {}, "")


@pytest.mark.parametrize("style", ["authors", "detectron2", "mmseg"])
@pytest.mark.parametrize("name", ["FCNHead", "PSPHead", "DeepLabV3Head", "DeepLabV3PlusHead"])
def test_every_head_trains_and_answers_at_the_size_of_the_image(name, style):
    keys = {"STYLE": style, "LOSS_TYPE": "hard_pixel_mining" if style == "detectron2" else "cross_entropy"}
    if name == "DeepLabV3PlusHead":
        if style == "authors":
            with pytest.raises(UserError, match="STYLE 'authors' is not supported by a DeepLabV3PlusHead"):
                small(name, STYLE=style, IN_FEATURES=["res4", "res5"])
            return
        keys |= {"IN_FEATURES": ["res4", "res5"], "PROJECT_CHANNELS": [8], "USE_DEPTHWISE_SEPARABLE_CONV": style == "mmseg"}
    model = build_model(small(name, **keys))
    losses = model(batch())
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_aux"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # Near chance at the start: the mean, and not the sum, of what is to be learned.
    assert losses["loss_sem_seg"].item() == pytest.approx(np.log(CLASSES), abs=0.1)
    assert losses["loss_sem_seg_aux"].item() == pytest.approx(0.4 * np.log(CLASSES), abs=0.05)
    with torch.no_grad():
        outputs = model.eval()([sample | {"height": 80, "width": 33} for sample in batch()])
    assert [tuple(output["sem_seg"].shape) for output in outputs] == [(CLASSES, 80, 33)] * 2


def test_the_auxiliary_head_is_not_run_in_evaluation():
    model = build_model(small("FCNHead")).eval()
    model.auxiliary_head.forward = None
    with torch.no_grad():
        model(batch())


@pytest.mark.parametrize("align_corners", [False, True])
def test_align_corners_is_that_of_the_interpolation(align_corners):
    model = build_model(small("FCNHead", ALIGN_CORNERS=align_corners)).eval()
    sample = batch(((33, 57),))[0]
    with torch.no_grad():
        logits = model.sem_seg_head(model.backbone(sample["image"][None]))
        expected = F.interpolate(logits, (33, 57), mode="bilinear", align_corners=align_corners)[0]
        torch.testing.assert_close(model([sample])[0]["sem_seg"], expected)


def test_hard_pixels_are_the_fifth_with_the_largest_losses():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 3, 8, 9, generator=generator), torch.randint(0, 3, (2, 8, 9), generator=generator)
    targets[0, :6] = 255
    losses = F.cross_entropy(logits, targets, ignore_index=255, reduction="none").flatten()
    expected = losses.sort(descending=True).values[: int(0.2 * losses.numel())].mean()
    torch.testing.assert_close(PixelLoss(weight=3.0, hardest=0.2)(logits, targets), 3 * expected)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_class_weights_are_torchs(scale):
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 3, 4, 5, generator=generator), torch.randint(0, 3, (2, 4, 5), generator=generator)
    targets[0, :2] = 255
    weights = [0.5 * scale, 0.0, 2.0 * scale]
    expected = F.cross_entropy(logits, targets, torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(PixelLoss(class_weights=weights)(logits, targets), expected)


def test_pixels_without_label_and_weight_give_zero_with_gradients():
    for loss in (PixelLoss(class_weights=[1.0, 0.0]), PixelLoss(hardest=0.2), PixelLoss()):
        for label in (255, 1) if loss.class_weights else (255,):
            logits = torch.randn(1, 2, 4, 4, requires_grad=True)
            value = loss(logits, torch.full((1, 4, 4), label))
            value.backward()
            assert value == 0 and not logits.grad.any()


def test_one_image_cannot_train_the_norm_after_a_pool():
    aspp = AsppSettings(channels=8, dilations=(2,), pool_norm=True)
    arguments = dict(num_classes=2, loss=PixelLoss(), norm="BN")
    head = DeepLabV3Head("res5", 4, aspp=aspp, **arguments)
    with pytest.raises(UserError, match="a batch of one image cannot train the batch norm after the pooling"):
        head({"res5": torch.rand(1, 4, 6, 6)})
    head({"res5": torch.rand(2, 4, 6, 6)})
    head.eval()({"res5": torch.rand(1, 4, 6, 6)})
    model = build_model(small("DeepLabV3Head", STYLE="authors"))
    for part in model.backbone.modules():
        part.eval()
    with pytest.raises(
        UserError, match="after the pooling of an image cannot be trained on one image a process.*SEM_SEG_HEAD.NORM 'GN'"
    ):
        check_batch_norm(model, 1)


@pytest.mark.parametrize("size, pooled", [((32, 32), (1, 1)), ((48, 40), (3, 2)), ((16, 64), (1, 5))])
def test_detectron2s_style_pools_windows_of_the_crop(size, pooled):
    """A map smaller than the crop, of which Detectron2 has no answer, is one window."""
    keys = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": [32, 32]}
    head = {"NAME": "DeepLabV3Head", "CONVS_DIM": 16, "ASPP_CHANNELS": 16, "STYLE": "detectron2", "DROPOUT": 0.0}
    cfg = authors_config("fcn", 14, **SMALL, **keys, **{f"MODEL.SEM_SEG_HEAD.{key}": value for key, value in head.items()})
    pool = build_model(cfg).sem_seg_head.aspp.convs[-1][0]
    assert tuple(pool(torch.rand(1, 3, size[0] // 8, size[1] // 8)).shape[-2:]) == pooled


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"SEM_SEG_HEAD.NAME": "FCN8"}, "SEM_SEG_HEAD.NAME 'FCN8' is not supported .*'FCNHead'"),
        ({"SEM_SEG_HEAD.COMMON_STRIDE": 16}, "COMMON_STRIDE 16 is not supported: a FCNHead classifies a map .* res5, 8"),
        ({"SEM_SEG_HEAD.IN_FEATURES": ["res4", "res5"]}, r"IN_FEATURES \['res4', 'res5'\] is not supported by a FCNHead"),
        ({"SEM_SEG_HEAD.IN_FEATURES": ["p2"]}, r"IN_FEATURES \['p2'\] is not supported"),
        ({"SEM_SEG_HEAD.CLASS_WEIGHTS": [1.0, 2.0]}, "CLASS_WEIGHTS has 2 values for 5 classes"),
        ({"SEM_SEG_HEAD.CLASS_WEIGHTS": [1.0, -1.0, 1.0, 1.0, 1.0]}, "CLASS_WEIGHTS .* must be 0 or more"),
        ({"SEM_SEG_HEAD.DROPOUT": 1.5}, "DROPOUT or ASPP_DROPOUT 1.5 is not supported"),
        ({"SEM_SEG_HEAD.ASPP_CHANNELS": 64}, "ASPP_CHANNELS 64 is not supported: a FCNHead does not read this key"),
        ({"SEM_SEG_HEAD.AUX_HEAD.IN_FEATURE": "res3"}, "AUX_HEAD.IN_FEATURE 'res3' is not supported; supported: one of res4"),
        ({"SEM_SEG_HEAD.LOSS_TYPE": "dice"}, "LOSS_TYPE 'dice' is not supported"),
        ({"SEM_SEG_HEAD.STYLE": "mmcv"}, "STYLE 'mmcv' is not supported"),
        ({"RESNETS.DILATION_STYLE": "gluon"}, "DILATION_STYLE 'gluon' is not supported"),
        ({"RESNETS.RES5_MULTI_GRID": [1, 1, 1]}, "RES5_MULTI_GRID .* build_resnest_backbone does not read this key"),
        (
            {"RESNETS.DEPTH": 50, "BACKBONE.NAME": "build_resnest_deeplab_backbone", "RESNETS.RES5_MULTI_GRID": [1, 2]},
            "MODEL.RESNETS: a multi-grid of 2 factors is not possible: res5 has 3 blocks",
        ),
        ({"META_ARCHITECTURE": "PanopticFPN", "BACKBONE.NAME": "build_resnest_fpn_backbone"}, "supported: 'SemSegFPNHead'"),
    ],
)
def test_what_does_not_fit_together_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        authors_config("fcn", 14, **{f"MODEL.{key}": value for key, value in keys.items()})


def test_deeplab_of_detectron2s_style_needs_a_crop_in_pixels():
    with pytest.raises(UserError, match="INPUT.CROP.TYPE 'relative_range' .* pools windows of the crop's size"):
        load_config(
            "semantic_ResNeSt50_FPN",
            ["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3Head", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2']", "INPUT.CROP.ENABLED", "True"]
            + ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "256"],
        )
