"""Records to samples."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from resnest_det.data.coco import load_coco_instances
from resnest_det.data.mapper import inference_sample, training_sample
from resnest_det.data.transforms import Augmentation, RandomCrop, RandomFlip, ResizeShortestEdge

AS_IS = Augmentation()
SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


def run_length(height, width, top, left, bottom, right):
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    encoded = mask_util.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


@pytest.fixture
def make_record(write_coco):
    def make(annotations, height=20, width=30):
        paths = write_coco([(1, height, width)], [{"image_id": 1} | annotation for annotation in annotations])
        return load_coco_instances("made", *paths).records[0]

    return make


def sample_of(record, augmentation=AS_IS, mask_format="polygon", seed=0):
    generator = np.random.default_rng(seed)
    return training_sample(record, generator, augmentation=augmentation, image_format="BGR", mask_format=mask_format)


def test_training_sample(make_record):
    record = make_record([
        {"bbox": [2, 2, 6, 6], "segmentation": SQUARE, "category_id": 2},
        {"bbox": [0, 0, 30, 20], "segmentation": run_length(20, 30, 0, 0, 20, 30), "iscrowd": 1},
    ])  # fmt: skip
    sample = sample_of(record, Augmentation((ResizeShortestEdge((40,), 50),)))
    assert sample["image"].shape == (3, 33, 50) and sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"], sample["image_id"]) == (20, 30, 1)
    assert sample["file_name"].endswith("1.png") and isinstance(sample["seed"], int)
    target = sample["target"]
    assert target["boxes"].dtype == torch.float32
    expected = np.array([2, 2, 8, 8]) * np.array([50 / 30, 33 / 20, 50 / 30, 33 / 20])
    np.testing.assert_allclose(target["boxes"].numpy(), [expected], rtol=1e-6)
    assert target["labels"].tolist() == [1] and target["labels"].dtype == torch.int64
    ((polygon,),) = target["masks"]
    assert polygon.dtype == np.float64
    np.testing.assert_allclose(polygon.reshape(-1, 2).max(axis=0), expected[2:])


def test_the_generator_decides_everything(make_record):
    record = make_record([{"bbox": [2, 2, 6, 6], "segmentation": SQUARE}])
    steps = RandomCrop("relative_range", (0.5, 0.5)), ResizeShortestEdge((10, 60), 99, "range"), RandomFlip()
    augmentation = Augmentation(steps)
    np.random.seed(0)
    first, again, other = (sample_of(record, augmentation, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first["image"], again["image"]) and first["seed"] == again["seed"]
    assert first["image"].shape != other["image"].shape and first["seed"] != other["seed"]


def test_boxes_alone(make_record):
    sample = sample_of(make_record([{"bbox": [2, 2, 6, 6]}]), mask_format=None)
    assert sample["target"].keys() == {"boxes", "labels"}
    np.testing.assert_array_equal(sample["target"]["boxes"], [[2, 2, 8, 8]])


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_run_length_masks_and_polygons_together_become_bitmasks(make_record, mask_format):
    record = make_record([
        {"bbox": [2, 2, 6, 6], "segmentation": SQUARE},
        {"bbox": [10, 4, 5, 6], "segmentation": run_length(20, 30, 4, 10, 10, 15)},
    ])  # fmt: skip
    masks = sample_of(record, Augmentation((ResizeShortestEdge((40,), 99),)), mask_format)["target"]["masks"]
    assert masks.shape == (2, 40, 60) and masks.dtype == torch.bool
    expected = torch.zeros(2, 40, 60, dtype=torch.bool)
    expected[0, 4:16, 4:16] = True
    expected[1, 8:20, 20:30] = True
    assert torch.equal(masks, expected)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask", None])
def test_image_without_objects(make_record, mask_format):
    target = sample_of(make_record([]), mask_format=mask_format)["target"]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    if mask_format is not None:
        assert len(target["masks"]) == 0


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_after_a_crop_boxes_are_tight_and_empty_objects_gone(make_record, mask_format):
    triangle = [[0.0, 0.0, 20.0, 0.0, 0.0, 20.0]]
    record = make_record([
        {"bbox": [0, 0, 20, 20], "segmentation": triangle},
        {"bbox": [0, 0, 2, 2], "segmentation": [[0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]], "category_id": 2},
    ], height=40, width=40)  # fmt: skip
    augmentation = Augmentation((RandomCrop("absolute", (10, 10)),))
    seeds = range(300)
    corners = {}
    for seed in seeds:
        transform = augmentation.draw(40, 40, skip_seed_draw(seed))[0]
        corners.setdefault((transform.x0, transform.y0), seed)
    x0, y0 = max((corner for corner in corners if min(corner) > 2 and sum(corner) < 16), key=sum)
    target = sample_of(record, augmentation, mask_format, corners[x0, y0])["target"]
    assert target["labels"].tolist() == [0]
    # The triangle's hypotenuse is x + y = 20: what is left reaches 20 - x0 - y0 along both sides of the window.
    reach = 20 - x0 - y0
    assert reach < 10, "the cropped box alone would be the whole window"
    np.testing.assert_allclose(target["boxes"], [[0, 0, reach, reach]], atol=0 if mask_format == "polygon" else 1)
    if mask_format == "bitmask":
        rows, columns = torch.where(target["masks"][0])
        np.testing.assert_array_equal(target["boxes"], [[0, 0, columns.max() + 1, rows.max() + 1]])


def skip_seed_draw(seed):
    """The state in which a sample's augmentation finds the generator."""
    generator = np.random.default_rng(seed)
    generator.integers(2**63)
    return generator


def test_inference_sample(make_record):
    record = make_record([{"bbox": [2, 2, 6, 6], "segmentation": SQUARE}])
    sample = inference_sample(record, short_side=10, max_side=999, image_format="L")
    assert sample.keys() == {"image", "height", "width", "image_id", "file_name"}
    assert sample["image"].shape == (1, 10, 15) and (sample["height"], sample["width"]) == (20, 30)
    assert inference_sample(record, short_side=0, max_side=5, image_format="RGB")["image"].shape == (3, 20, 30)
