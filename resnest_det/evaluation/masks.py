"""Conversions of COCO segmentations (polygons, run lengths) with pycocotools."""

import numpy as np
import pycocotools.mask as mask_util
import torch


def encode_masks(masks: torch.Tensor) -> list[dict]:
    """COCO's compressed run-length encoding of each of (N, height, width) bool masks, with `counts` as str for JSON."""
    encoded = []
    for mask in masks.detach().cpu().numpy():
        run_lengths = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        encoded.append({"size": [int(side) for side in run_lengths["size"]], "counts": run_lengths["counts"].decode("ascii")})
    return encoded


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
