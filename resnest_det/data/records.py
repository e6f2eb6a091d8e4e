"""What passes between readers, mapper and models: an image of a dataset before it is read, and what a model takes.

They are dicts under Detectron2's names, so that its mappers and evaluators take the same ones.
"""

from typing import TypedDict

import numpy as np
from torch import Tensor

from resnest_det.data.label_png import LabelPng


class Annotation(TypedDict, total=False):
    """An object of a record.

    `bbox` (x, y, width, height in pixels) is there unless the record's `objects_in_png` says otherwise; `segmentation`, polygons
    [[x0, y0, x1, y1, ...], ...] or compressed run lengths, may be absent. `category_id` is contiguous.
    """

    id: int
    category_id: int
    iscrowd: int
    bbox: list[float]
    segmentation: list[list[float]] | dict


class SegmentInfo(TypedDict):
    """A segment of a panoptic PNG; `category_id` is contiguous among things or among stuff."""

    id: int
    category_id: int
    isthing: bool
    iscrowd: int


class _Image(TypedDict):
    file_name: str
    height: int
    width: int
    image_id: int


class Record(_Image, total=False):
    """An image of a dataset and where its truth is.

    `annotations` is always there. Classes of the pixels are in `label_png`, in `label_masks`, which are (class, compressed run
    lengths), or in the panoptic PNG `pan_seg_file_name`, whose segments are `segments_info`; a record with none has objects
    alone. With `objects_in_png` the objects are thing segments of the panoptic PNG, and `resnest_det.data.panoptic.with_truth`
    reads their boxes and masks.
    """

    annotations: list[Annotation]
    label_png: LabelPng
    label_masks: tuple[tuple[int, bytes], ...]
    pan_seg_file_name: str
    segments_info: list[SegmentInfo]
    objects_in_png: bool


class Target(TypedDict, total=False):
    """What a model learns of an image: of N objects, and of the pixels.

    `boxes` (N, 4) float32 XYXY in pixels of the sample's image; `labels` (N,) int64; `masks` N lists of polygons, float64 (2k,),
    or a bool tensor (N, H, W); `sem_seg` integer (H, W) classes. Crowd regions, and objects of which a crop left nothing, are
    absent.
    """

    boxes: Tensor
    labels: Tensor
    masks: list[list[np.ndarray]] | Tensor
    sem_seg: Tensor


class Sample(_Image, total=False):
    """What a model takes of an image: `image` uint8 (C, H, W); `height` and `width` are the file's size.

    In training also the `target`, and a `seed` for what the model draws.
    """

    image: Tensor
    seed: int
    target: Target
