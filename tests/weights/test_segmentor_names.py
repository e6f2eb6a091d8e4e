"""Weights of semantic models from other libraries, loaded into ours."""

import pytest
import torch

from resnest_det.backbone.loading import load_into, load_weights
from resnest_det.configuration.model import build_model
from resnest_det.errors import UserError
from resnest_det.weights.names import from_own_names
from resnest_det.weights.segmentor_names import segmentor_heads
from resnest_det.weights.weights import read_weights
from tests.helpers.fill import fill
from tests.helpers.segmentation_cases import authors_config

SMALL = {
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.AUX_HEAD.CONVS_DIM": 16,
}
THEIRS = {
    "sem_seg_head.convs.0.norm": "head.conv5.1",
    "sem_seg_head.convs.0": "head.conv5.0",
    "sem_seg_head.predictor": "head.conv5.4",
    "auxiliary_head.convs.0.norm": "auxlayer.conv5.1",
    "auxiliary_head.convs.0": "auxlayer.conv5.0",
    "auxiliary_head.predictor": "auxlayer.conv5.4",
}


def model(**keys):
    return build_model(authors_config("fcn", 14, **SMALL, **{f"MODEL.{key}": value for key, value in keys.items()}))


def authors_state() -> tuple[dict, dict]:
    """Parameters of a small FCN under our names and under the authors'."""
    filled = model()
    fill(filled)
    own = filled.state_dict()
    backbone = {name.removeprefix("backbone."): value for name, value in own.items() if name.startswith("backbone.")}
    theirs = {f"pretrained.{name}": value for name, value in from_own_names(backbone, "timm").items()}
    for name in own:
        for ours, other in THEIRS.items():
            if name.rpartition(".")[0] == ours:
                theirs[f"{other}.{name.rpartition('.')[2]}"] = own[name]
    return own, theirs


@pytest.fixture
def checkpoint(tmp_path):
    own, theirs = authors_state()
    path = tmp_path / "fcn_resnest14_mine.pth"
    # As their trainer saves it.
    torch.save({"epoch": 7, "state_dict": {f"module.{name}": value for name, value in theirs.items()}, "best_pred": 0.4}, path)
    return own, path


def test_a_file_of_the_authors_trainer_sets_every_parameter(checkpoint):
    own, path = checkpoint
    target = model()
    report = load_weights(target, path)
    assert not report.fresh and not report.left and report.layout == "timm" and "'module.'" in report.taken_off
    for name, value in target.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_other_classes_leave_both_heads_as_they_are_or_are_refused(checkpoint):
    own, path = checkpoint
    target = model(**{"SEM_SEG_HEAD.NUM_CLASSES": 3})
    with pytest.raises(UserError, match="sem_seg_head.predictor.weight .*; 5 classes of pixels in the file, 3 in the model"):
        load_weights(target, path)
    before = target.sem_seg_head.predictor.weight.clone()
    report = load_into(target, read_weights(path), classes={"stuff_classes": ["a", "b", "c"]})
    assert set(report.new_classes) == {"sem_seg_head.predictor", "auxiliary_head.predictor"}
    assert torch.equal(target.sem_seg_head.predictor.weight, before)
    assert torch.equal(target.sem_seg_head.convs[0].weight, own["sem_seg_head.convs.0.weight"])


def test_the_auxiliary_head_need_not_be_in_model_or_file(checkpoint, tmp_path):
    own, path = checkpoint
    without = model(**{"SEM_SEG_HEAD.AUX_HEAD.ENABLED": False})
    report = load_weights(without, path)
    assert set(report.left.values()) == {"the model has no auxiliary head"} and len(report.left) == 8
    torch.save(
        {"model": {name: value for name, value in own.items() if not name.startswith("auxiliary_head.")}}, tmp_path / "b.pth"
    )
    report = load_weights(model(), tmp_path / "b.pth")
    assert set(report.fresh.values()) == {"the file has no auxiliary head"}
    report.require_whole("evaluating needs all")


def test_another_head_is_refused(checkpoint):
    with pytest.raises(UserError, match="they do not fit the model: sem_seg_head.convs.0.weight is not in the model"):
        load_weights(model(**{"SEM_SEG_HEAD.NAME": "PSPHead"}), checkpoint[1])


def test_a_backbone_alone_takes_only_that(checkpoint):
    report = load_weights(model().backbone, checkpoint[1])
    assert not report.fresh and {"head.conv5.0.weight", "auxlayer.conv5.4.bias"} < set(report.left)


def test_mmsegmentations_order_of_channels():
    """The pooled branch is the first there and the last here; the finer map the last there and the first here."""
    state = {
        "decode_head.conv_seg.weight": torch.zeros(5, 2, 1, 1),
        **{f"decode_head.aspp_modules.{i}.conv.weight": torch.zeros(2, 4, 1, 1) for i in range(2)},
        "decode_head.image_pool.1.conv.weight": torch.zeros(2, 4, 1, 1),
        "decode_head.bottleneck.conv.weight": torch.arange(6.0).view(1, 6, 1, 1),
        "decode_head.c1_bottleneck.conv.weight": torch.zeros(3, 4, 1, 1),
        "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight": torch.arange(5.0).view(5, 1, 1, 1),
        "decode_head.sep_bottleneck.0.depthwise_conv.bn.bias": torch.arange(5.0),
        "decode_head.sep_bottleneck.0.pointwise_conv.conv.weight": torch.arange(5.0).view(1, 5, 1, 1),
        "decode_head.sep_bottleneck.1.depthwise_conv.bn.bias": torch.arange(5.0),
    }
    heads, _, family = segmentor_heads(state)
    prefix = "sem_seg_head.decoder"
    assert family == "mmseg" and f"{prefix}.res5.project_conv.convs.2.1.weight" in heads
    assert heads[f"{prefix}.res5.project_conv.project.weight"].flatten().tolist() == [2, 3, 4, 5, 0, 1]
    for name in ("0.depthwise.weight", "0.depthwise.norm.bias", "0.pointwise.weight"):
        assert heads[f"{prefix}.res2.fuse_conv.{name}"].flatten().tolist() == [2, 3, 4, 0, 1], name
    assert heads[f"{prefix}.res2.fuse_conv.1.depthwise.norm.bias"].tolist() == [0, 1, 2, 3, 4]
