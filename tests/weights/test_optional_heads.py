"""Checkpoints of detectors whose configuration has a head more, or one less, than the model that takes them."""

import pytest
import torch

from resnest_det.backbone.loading import load_into
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.model import build_model
from resnest_det.configuration.nodes import with_values
from resnest_det.errors import UserError
from resnest_det.weights.weights import weights_of
from tests.helpers.cases import overrides

MASK, PIXELS = "roi_heads.mask_head.", "sem_seg_head."
KINDS = {"boxes": (False, "GeneralizedRCNN"), "masks": (True, "GeneralizedRCNN"), "panoptic": (True, "PanopticFPN")}


def detector(kind):
    cfg = default_config()
    cfg.merge_from_list(overrides("panoptic_gn"))
    masks, architecture = KINDS[kind]
    return build_model(with_values(cfg, {"MODEL.MASK_ON": masks, "MODEL.META_ARCHITECTURE": architecture}))


def load(file, model, **options):
    return load_into(model, weights_of(dict(file.state_dict()), "file.pth"), **options)


@pytest.mark.parametrize(
    "file, model, missing, reason",
    [
        ("masks", "boxes", (MASK,), "the model has no mask head"),
        ("panoptic", "masks", (PIXELS,), "the model has no head for classes of pixels"),
    ],
)
def test_a_head_that_the_model_lacks_is_left_in_the_file(file, model, missing, reason):
    source, target = detector(file), detector(model)
    report = load(source, target)
    assert set(report.left.values()) == {reason} and all(name.startswith(missing) for name in report.left)
    report.require_whole("it is evaluated")
    saved = source.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    "file, model, missing, reason",
    [
        ("boxes", "masks", MASK, "the file has no mask head"),
        ("masks", "panoptic", PIXELS, "the file has no head for classes of pixels"),
    ],
)
def test_a_head_that_the_file_lacks_begins_anew_in_training_only(file, model, missing, reason):
    source, target = detector(file), detector(model)
    with pytest.raises(UserError, match=rf"file\.pth: they do not fit the model: {missing}.* is not in the file"):
        load(source, target)
    report = load(source, target, classes={})
    assert set(report.fresh.values()) == {reason}
    assert set(report.fresh) == {name for name in target.state_dict() if name.startswith(missing)}
    with pytest.raises(UserError, match=f"file.pth has nothing for .*: {reason}; it is evaluated"):
        report.require_whole("it is evaluated")
