"""Conversions of COCO segmentations (polygons, run lengths)."""

from collections.abc import Iterable

import hotcoco
import numpy as np
import pycocotools.mask as mask_util
import torch


def encode_masks(masks: torch.Tensor | Iterable[torch.Tensor]) -> list[dict]:
    """COCO's compressed run-length encoding of each mask, with `counts` as str for JSON.

    Args:
        masks: (N, height, width) bool, or (height, width) bool of each, which are then made and encoded one by one.
    """
    if not isinstance(masks, torch.Tensor):
        return [encoded for mask in masks for encoded in encode_masks(mask[None])]
    encoded = hotcoco.mask.encode(np.moveaxis(masks.detach().cpu().numpy(), 0, 2))
    return [each | {"counts": each["counts"].decode("ascii")} for each in encoded]


def segmentation_to_run_lengths(segmentation, height: int, width: int) -> dict:
    """Polygons, uncompressed or compressed run lengths as compressed run lengths over a whole image."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def segmentation_to_mask(segmentation, height: int, width: int) -> np.ndarray:
    """A COCO segmentation as a (height, width) uint8 mask of 0 and 1."""
    return mask_util.decode(segmentation_to_run_lengths(segmentation, height, width))
