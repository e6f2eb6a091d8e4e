"""Test-time augmentation by itself: what one view gives, what mirroring is, and which images are looked at."""

import pytest
import torch

from resnest_det.detector.test_time_augmentation import GeneralizedRCNNWithTTA
from tests.helpers.cases import make_samples
from tests.helpers.observe import build_builtin

CASE = "cascade_mask_gn_ciou"


@pytest.fixture(scope="module")
def model():
    return build_builtin(CASE).eval()


def augmented(model, **arguments):
    return GeneralizedRCNNWithTTA(model, **{"short_sides": (97,), "max_side": 400, "flip": False} | arguments).eval()


def same(actual, expected, box_tolerance=1e-3):
    assert actual.keys() == expected.keys() and len(actual["boxes"]) == len(expected["boxes"]) > 0
    assert torch.equal(actual["classes"], expected["classes"])
    torch.testing.assert_close(actual["scores"], expected["scores"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(actual["boxes"], expected["boxes"], rtol=1e-4, atol=box_tolerance)
    assert (actual["masks"] != expected["masks"]).float().mean() < 1e-4


@torch.no_grad()
def test_one_view_of_the_same_size_is_the_model_itself(model):
    sample = make_samples(CASE)[0]  # its short side is 97
    same(augmented(model)([sample])[0], model([sample])[0])


@torch.no_grad()
def test_mirrored_views_of_a_mirrored_image_give_the_mirror_image(model):
    sample = make_samples(CASE)[0] | {"height": 97, "width": 131}
    mirrored = sample | {"image": sample["image"].flip(-1)}
    detect = augmented(model, flip=True)
    expected = detect([sample])[0]
    x0, y0, x1, y1 = expected["boxes"].unbind(1)
    expected = expected | {"boxes": torch.stack((131 - x1, y0, 131 - x0, y1), 1), "masks": expected["masks"].flip(-1)}
    same(detect([mirrored])[0], expected)


@torch.no_grad()
def test_views_are_of_the_sizes_asked_for(model, monkeypatch):
    seen = []
    preprocess = model.preprocess

    def spy(batch):
        seen.append([tuple(sample["image"].shape[1:]) for sample in batch])
        return preprocess(batch)

    monkeypatch.setattr(model, "preprocess", spy)
    augmented(model, short_sides=(50, 97, 300), max_side=200, flip=True)(make_samples(CASE)[:1])
    boxes = [[(50, 68)] * 2 + [(97, 131)], [(97, 131)] + [(148, 200)] * 2]
    assert seen == boxes + boxes  # again for the masks


@torch.no_grad()
def test_nothing_found_is_an_answer(model):
    predictor = model.roi_heads.box_predictor[-1]
    threshold, predictor.score_threshold = predictor.score_threshold, 2.0
    try:
        result = augmented(model, flip=True)(make_samples(CASE)[:1])[0]
    finally:
        predictor.score_threshold = threshold
    assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, 150, 203)
