"""Classes of pixels as masks, one for each region of a class."""

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.data.label_png import UNLABELLED


def read_label_masks(masks: tuple[tuple[int, bytes], ...], size: tuple[int, int]) -> np.ndarray:
    """Classes of the pixels, (H, W) uint8, `UNLABELLED` where there is no mask; of masks that overlap the last one counts.

    Args:
        masks: the class of each, or `UNLABELLED`, and its compressed run lengths.
        size: (height, width) of the image.
    """
    labels = np.full(size, UNLABELLED, dtype=np.uint8)
    for label, counts in masks:
        labels[mask_util.decode({"size": list(size), "counts": counts}).view(bool)] = label
    return labels
