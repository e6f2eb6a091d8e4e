"""From a dataset record to a sample for a model."""

import numpy as np
import pycocotools.mask as mask_util
import torch

from resnest_det.data.image import read_record_image
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.panoptic import with_truth
from resnest_det.data.polygons import rasterize
from resnest_det.data.records import Annotation, Record, Sample, Target
from resnest_det.data.transforms import (
    Augmentation,
    Crop,
    Resize,
    Transform,
    short_side_size,
    transform_boxes,
    transform_image,
    transform_labels,
    transform_mask,
    transform_polygons,
)

# Objects with a side of at most this many pixels, for instance after a crop, are no targets.
_EMPTY_SIDE = 1e-5


def training_sample(
    record: Record,
    generator: np.random.Generator,
    *,
    augmentation: Augmentation,
    image_format: str,
    mask_format: str | None,
    semantic: bool = False,
    ignore_value: int = UNLABELLED,
) -> Sample:
    """Read, augment and annotate one training image.

    Args:
        generator: every random choice for this showing of the image comes from it.
        image_format: "BGR", "RGB" or "L".
        mask_format: "polygon", "bitmask", or None for boxes only; with a format every object needs a segmentation. An
            image that has run-length masks gives bitmasks either way.
        semantic: whether the labels of pixels are targets too; the record then has some.
        ignore_value: of pixels that have no label, in the target.

    Returns:
        a sample with `seed` and `target`, which has `masks` with a mask_format, and `sem_seg` if `semantic`: uint8 with 255 as
        the `ignore_value`, otherwise int64.

    Raises:
        UserError: see `read_record_image` and `resnest_det.data.panoptic.with_truth`.
    """
    seed = int(generator.integers(2**63))
    pixels = read_record_image(record, image_format)
    labels = None
    if semantic or record.get("objects_in_png"):
        record, labels = with_truth(record)
    transforms = augmentation.draw(*pixels.shape[:2], generator, labels if augmentation.looks_at_labels else None)
    pixels = transform_image(pixels, transforms)
    size = pixels.shape[:2]

    objects = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
    boxes = transform_boxes(_boxes_xyxy(objects), transforms, size)
    target = {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.tensor([annotation["category_id"] for annotation in objects], dtype=torch.int64),
    }
    if mask_format is not None:
        target["masks"] = _masks(objects, transforms, size, mask_format)
        if any(isinstance(transform, Crop) for transform in transforms):
            target["boxes"] = _mask_boxes(target["masks"])
    target = _without_empty(target)
    if semantic:
        moved = torch.from_numpy(np.array(transform_labels(labels, transforms)))
        target["sem_seg"] = moved if ignore_value == UNLABELLED else moved.long().where(moved != UNLABELLED, ignore_value)
    return _sample(record, pixels) | {"seed": seed, "target": target}


def inference_sample(record: Record, *, short_side: int, max_side: int, image_format: str) -> Sample:
    """Read and resize one image for inference (a short side of 0 keeps its size); a training sample without the target.

    Raises:
        UserError: see `read_record_image`.
    """
    return sample_of_pixels(record, read_record_image(record, image_format), short_side=short_side, max_side=max_side)


def sample_of_pixels(record: Record, pixels: np.ndarray, *, short_side: int, max_side: int) -> Sample:
    """`inference_sample` of an image (H, W, C) that was read already."""
    if short_side > 0:
        size = pixels.shape[:2]
        pixels = Resize(size, short_side_size(*size, short_side, max_side)).image(pixels)
    return _sample(record, pixels)


def _sample(record: Record, pixels: np.ndarray) -> Sample:
    # Copied unless it is a copy already: transposing leaves a grayscale image that was not resized in Pillow's read-only memory.
    image = torch.from_numpy(np.require(pixels.transpose(2, 0, 1), requirements=["C", "W"]))
    return {"image": image} | {key: record[key] for key in ("height", "width", "image_id", "file_name")}


def _boxes_xyxy(objects: list[Annotation]) -> np.ndarray:
    # Rounded to single precision before anything else, as Detectron2 does, or boxes would differ in their last bit.
    boxes = np.array([annotation["bbox"] for annotation in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float64)


def _masks(
    objects: list[Annotation], transforms: list[Transform], size: tuple[int, int], mask_format: str
) -> list[list[np.ndarray]] | torch.Tensor:
    segmentations = [_segmentation(annotation) for annotation in objects]
    if mask_format == "polygon" and all(isinstance(segmentation, list) for segmentation in segmentations):
        moved = [transform_polygons(polygons, transforms) for polygons in segmentations]
        return [[polygon.reshape(-1) for polygon in polygons] for polygons in moved]
    bitmasks = np.zeros((len(objects), *size), dtype=np.uint8)
    for bitmask, segmentation in zip(bitmasks, segmentations):
        if isinstance(segmentation, list):
            bitmask[:] = rasterize(transform_polygons(segmentation, transforms), size)
        else:
            bitmask[:] = transform_mask(segmentation, transforms)
    return torch.from_numpy(bitmasks.view(np.bool_))


def _segmentation(annotation: Annotation) -> list[np.ndarray] | np.ndarray:
    """Polygons (k, 2) float64, or a decoded bitmask (H, W) uint8, of one object in the file's pixels."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    return [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]


def _mask_boxes(masks: list[list[np.ndarray]] | torch.Tensor) -> torch.Tensor:
    """Tight boxes (N, 4) float32 XYXY around masks; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks):
        if isinstance(mask, list):
            if mask:
                points = np.concatenate(mask).reshape(-1, 2)
                box[:] = torch.from_numpy(np.concatenate([points.min(axis=0), points.max(axis=0)]))
        elif mask.any():
            rows, columns = torch.where(mask)
            box[:] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def _without_empty(target: Target) -> Target:
    boxes, masks = target["boxes"], target.get("masks")
    keep = ((boxes[:, 2:] - boxes[:, :2]) > _EMPTY_SIDE).all(dim=1)
    if masks is None:
        return {key: value[keep] for key, value in target.items()}
    keep &= torch.tensor([len(mask) > 0 if isinstance(mask, list) else bool(mask.any()) for mask in masks], dtype=torch.bool)
    if isinstance(masks, list):
        masks = [mask for mask, kept in zip(masks, keep.tolist()) if kept]
    else:
        masks = masks[keep]
    return {"boxes": boxes[keep], "labels": target["labels"][keep], "masks": masks}
