"""Several sizes, mirror images and windows of a model of pixels, against the authors' own evaluator and by hand."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resnest_det.configuration.evaluation import build_evaluation_sets
from resnest_det.configuration.model import build_test_time_augmentation
from resnest_det.configuration.reading import load_config
from resnest_det.detector.semantic_augmentation import PixelViews, SemanticSegmentorWithTTA
from resnest_det.detector.semantic_segmentor import SemanticSegmentor
from resnest_det.errors import ArgumentError
from tests.helpers.segmentation_cases import EVALUATED, build_filled, evaluated_config, evaluated_image

GOLDEN = Path(__file__).parents[1] / "golden" / "authors_evaluator.npz"


def test_label_maps_are_the_authors():
    """At least 99.99 % of the pixels, as float sums may differ where two classes are equally likely."""
    model = SemanticSegmentorWithTTA(build_filled(evaluated_config()), EVALUATED)
    right = total = 0
    with np.load(GOLDEN) as golden, torch.no_grad():
        for name in golden:
            (output,) = model([{"image": evaluated_image(name)}])
            right += (output["sem_seg"].argmax(dim=0).numpy() == golden[name]).sum()
            total += golden[name].size
            assert len(np.unique(golden[name])) > 2
    assert total > 15000 and right / total >= 0.9999


class Pixelwise(nn.Module):
    """Logits of three classes: a channel each, which depends on its own pixel alone; and what it was asked for."""

    size_divisibility = 1
    num_classes, align_corners, ignore_value = 3, True, 255

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        if isinstance(images, dict):
            return images["x"]
        self.shapes.append(tuple(images.shape))
        return {"x": images}


@pytest.fixture
def made():
    """made(**views) -> the augmented model, and what its backbone sees."""

    def make(align_corners=True, **views):
        parts = Pixelwise()
        parts.align_corners = align_corners
        mean, std = [100.0, 110.0, 120.0], [50.0, 50.0, 50.0]
        model = SemanticSegmentor(backbone=parts, sem_seg_head=parts, pixel_mean=mean, pixel_std=std)
        return SemanticSegmentorWithTTA(model.eval(), PixelViews(**views)), parts.shapes

    return make


def image_of(height, width):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))


def test_one_whole_view_gives_the_models_own_probabilities(made):
    model, shapes = made()
    image = image_of(9, 14)
    scores = model([{"image": image}])[0]["sem_seg"]
    torch.testing.assert_close(scores, ((image - model.model.pixel_mean) / 50).softmax(dim=0))
    assert shapes == [(1, 3, 9, 14)]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("combine", ["probabilities", "exponentials"])
def test_windows_that_overlap_make_the_same_map_as_the_whole(made, combine, align_corners):
    """Of a model that looks at single pixels, at the size of the file."""
    sample = {"image": image_of(50, 71), "height": 100, "width": 33}
    settings = dict(scales=(0.6, 1.0, 1.3), flip=True, combine=combine, align_corners=align_corners)
    whole = made(**settings)[0]([sample])[0]["sem_seg"]
    windows = made(**settings, window=(24, 16))[0]([sample])[0]["sem_seg"]
    assert whole.shape == (3, 100, 33)
    torch.testing.assert_close(windows, whole, rtol=1e-5, atol=1e-5)


def test_interpolation_is_torchs(made):
    for align_corners in (True, False):
        model, _ = made(align_corners=align_corners)
        image = image_of(12, 20)
        expected = nn.functional.interpolate(
            ((image - model.model.pixel_mean) / 50).softmax(dim=0)[None], (31, 7), mode="bilinear", align_corners=align_corners
        )[0]
        torch.testing.assert_close(model([{"image": image, "height": 31, "width": 7}])[0]["sem_seg"], expected)


def test_windows_step_two_thirds_and_are_padded_with_black(made):
    model, shapes = made(window=(12, 12))
    model([{"image": image_of(20, 9)}])
    assert shapes == [(1, 3, 12, 12)] * 2, "from rows 0 and 8, the second to the end"
    seen = []
    model.model.backbone.forward = lambda images: seen.append(images) or {"x": images}
    model.model.sem_seg_head = Pixelwise()
    model([{"image": torch.full((3, 12, 9), 200, dtype=torch.uint8)}])
    black = torch.tensor([-2.0, -2.2, -2.4]).view(3, 1, 1)
    torch.testing.assert_close(seen[0][0, :, :, 9:], black.expand(3, 12, 3))
    assert (seen[0][0, :, :, :9] > 1).all()


def test_mirror_images_are_turned_back(made):
    """A model that prefers the left half finds both halves equal."""
    model, _ = made(flip=True)
    left = torch.zeros(3, 6, 8)
    left[0, :, :4] = 5.0
    model.model.sem_seg_head.forward = lambda features: left[None]
    scores = model([{"image": image_of(6, 8)}])[0]["sem_seg"]
    torch.testing.assert_close(scores, scores.flip(-1))
    one = left.softmax(dim=0)
    torch.testing.assert_close(scores, (one + one.flip(-1)) / 2)


def test_exponentials_of_huge_logits_stay_numbers(made):
    model, _ = made(combine="exponentials", flip=True)
    model.model.pixel_std[:] = 0.1
    scores = model([{"image": image_of(6, 8), "height": 13, "width": 17}])[0]["sem_seg"]
    assert scores.isfinite().all()


def test_memory_is_one_map_of_the_image_and_one_window(made, monkeypatch):
    """However large a view is, nothing larger than the image or a window has all classes."""
    model, _ = made(scales=(4.0,), window=(16, 16))
    largest = [0]
    add = SemanticSegmentorWithTTA._add

    def watched(total, scores, rows, columns):
        largest[0] = max(largest[0], scores[0].numel(), (rows.last - rows.first) * 16)
        add(total, scores, rows, columns)

    monkeypatch.setattr(SemanticSegmentorWithTTA, "_add", staticmethod(watched))
    (output,) = model([{"image": image_of(40, 60)}])
    assert largest[0] <= 16 * 16 and output["sem_seg"].shape == (3, 40, 60)


@pytest.mark.parametrize(
    "values", [{"scales": ()}, {"scales": (-1.0,)}, {"window": (4, 4)}, {"window": (480,)}, {"combine": "logits"}]
)
def test_views_that_cannot_be(values):
    with pytest.raises(ArgumentError):
        PixelViews(**values)


def test_a_recipe_evaluates_as_its_keys_say(tmp_path):
    cfg = load_config("deeplabv3_ResNeSt50_ade20k", ["TEST.AUG.ENABLED", True, "OUTPUT_DIR", str(tmp_path)])
    views = build_test_time_augmentation(cfg, nn.Identity()).views
    assert views == PixelViews((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), 520, True, (480, 480), "exponentials")
    assert build_evaluation_sets(cfg, [], augmented=True) == [] and zipfile.is_zipfile(GOLDEN)
