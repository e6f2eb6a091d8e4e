"""The same records and transforms through Detectron2's reader and mapper."""

import random

import numpy as np
import pytest
import torch

from resnest_det.data import samplers
from resnest_det.data.coco import load_coco_instances
from resnest_det.data.mapper import training_sample
from resnest_det.data.transforms import (
    Augmentation,
    Crop,
    Flip,
    RandomCrop,
    RandomFlip,
    Resize,
    ResizeShortestEdge,
    short_side_size,
)

pytestmark = pytest.mark.detectron2

NAME = "for_comparison"


@pytest.fixture
def paths(write_coco):
    generator = random.Random(0)
    images = [(n, generator.randint(40, 90), generator.randint(40, 90)) for n in range(1, 9)]
    annotations = []
    for image_id, height, width in images:
        for _ in range(generator.randint(0, 5)):
            x, y = generator.uniform(0, width - 15), generator.uniform(0, height - 15)
            w, h = generator.uniform(5, width - x), generator.uniform(5, height - y)
            corners = [x, y, x + w, y + 1.3, x + 0.7 * w, y + h, x + 0.1, y + 0.8 * h]
            parts = [corners, [x, y, x + 3.25, y, x, y + 3.5]][: generator.randint(1, 2)]
            bbox = [x, y, w, h]
            category = generator.choice([3, 8])
            annotations.append({"image_id": image_id, "bbox": bbox, "segmentation": parts, "category_id": category})
        run_length = {"size": [height, width], "counts": [height * 3 + 5, 9, height * width - height * 3 - 14]}
        crowd = {"segmentation": run_length, "iscrowd": 1, "category_id": 3}
        annotations.append({"image_id": image_id, "bbox": [3, 5, 1, 9]} | crowd)
    return write_coco(images, annotations, [(8, "dog"), (3, "cat")])


@pytest.fixture
def detectron2_records(paths):
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    MetadataCatalog.pop(NAME, None)
    yield load_coco_json(*paths, NAME)
    MetadataCatalog.pop(NAME, None)


def test_records(paths, detectron2_records):
    from detectron2.data import MetadataCatalog

    dataset = load_coco_instances(NAME, *paths)
    metadata = MetadataCatalog.get(NAME)
    assert dataset.metadata.thing_classes == metadata.thing_classes
    assert dataset.metadata.thing_dataset_id_to_contiguous_id == metadata.thing_dataset_id_to_contiguous_id
    for ours, theirs in zip(dataset.records, detectron2_records, strict=True):
        theirs = dict(theirs, annotations=[{k: v for k, v in a.items() if k != "bbox_mode"} for a in theirs["annotations"]])
        ours = dict(ours, annotations=[{k: v for k, v in a.items() if k != "id"} for a in ours["annotations"]])
        assert ours == theirs


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
def test_samples_are_equal_to_the_last_bit(paths, detectron2_records, mask_format, flip):
    augmentation = Augmentation((ResizeShortestEdge((64, 100, 133), 150), RandomFlip(flip)))
    compare(paths, detectron2_records, augmentation, mask_format)


def test_cropped_boxes_are_equal(paths, detectron2_records):
    steps = RandomCrop("relative_range", (0.4, 0.4)), ResizeShortestEdge((64,), 150), RandomFlip()
    compare(paths, detectron2_records, Augmentation(steps), None)


def compare(paths, detectron2_records, augmentation, mask_format):
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    translated = {
        Resize: lambda t: T.ResizeTransform(*t.old_size, *t.new_size),
        Flip: lambda t: T.HFlipTransform(t.size[1]) if t.horizontal else T.VFlipTransform(t.size[0]),
        Crop: lambda t: T.CropTransform(t.x0, t.y0, t.size[1], t.size[0]),
    }
    records = load_coco_instances(NAME, *paths).records
    for seed, (record, theirs_record) in enumerate(zip([*records] * 3, detectron2_records * 3)):
        generator = np.random.default_rng(seed)
        generator.integers(2**63)
        transforms = augmentation.draw(record["height"], record["width"], generator)
        mapper = DatasetMapper(
            True,
            augmentations=[translated[type(transform)](transform) for transform in transforms],
            image_format="BGR",
            use_instance_mask=mask_format is not None,
            instance_mask_format=mask_format or "polygon",
        )
        theirs = mapper(theirs_record)
        ours = training_sample(
            record, np.random.default_rng(seed), augmentation=augmentation, image_format="BGR", mask_format=mask_format
        )
        assert torch.equal(ours["image"], theirs["image"])
        instances, target = theirs["instances"], ours["target"]
        assert torch.equal(target["boxes"], instances.gt_boxes.tensor)
        assert torch.equal(target["labels"], instances.gt_classes)
        if mask_format == "bitmask" and len(instances):
            assert torch.equal(target["masks"], instances.gt_masks.tensor)
        elif mask_format == "polygon" and len(instances):
            for own_polygons, their_polygons in zip(target["masks"], instances.gt_masks.polygons, strict=True):
                for own, their in zip(own_polygons, their_polygons, strict=True):
                    np.testing.assert_array_equal(own, their)


def test_sizes():
    from detectron2.data.transforms import ResizeShortestEdge

    generator = np.random.default_rng(0)
    for _ in range(5000):
        height, width, short_side, max_side = (int(value) for value in generator.integers(50, 1500, 4))
        expected = ResizeShortestEdge.get_output_shape(height, width, short_side, max_side)
        assert short_side_size(height, width, short_side, max_side) == expected


def test_repeat_factors(detectron2_records):
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    for threshold, square_root in ((0.5, True), (0.9, False)):
        expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(detectron2_records, threshold, square_root)
        ours = samplers.repeat_factors_from_categories(detectron2_records, threshold, square_root)
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)
