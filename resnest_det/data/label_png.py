"""Label PNG files: one byte a pixel, the index of its class, as ADE20K, Cityscapes, COCO-Stuff, VOC and Detectron2 have them."""

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from resnest_det.data.image import open_image, png_header
from resnest_det.errors import UserError

# What a pixel without a label is in memory, whatever its file has for that.
UNLABELLED = 255
MAX_CLASSES = UNLABELLED

# PNG specification, 11.2.2: color types of the header.
_KINDS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray and alpha", 6: "RGBA"}
_GRAY, _PALETTE = 0, 3


@dataclass(frozen=True)
class LabelPng:
    """Where the classes of an image's pixels are.

    Attributes:
        file_name: of the PNG.
        num_classes: C; values 0 to C - 1 are classes.
        ignore_value: of pixels without a label. If it is below C, that class has no pixels.
        values: the class of each value from 0 on, `UNLABELLED` of those without one, where a value is not the index of its class.
    """

    file_name: str
    num_classes: int
    ignore_value: int = UNLABELLED
    values: tuple[int, ...] = ()


def label_png_size(file_name: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of a label PNG. Only its first bytes are read.

    Raises:
        UserError: the file cannot be read, is not a PNG, or its pixels are not single bytes.
    """
    size, bits, kind = png_header(file_name, "label PNG")
    # Fewer bits of gray would be stretched to the whole range when they are decoded.
    if kind != _PALETTE and (kind, bits) != (_GRAY, 8):
        raise UserError(
            f"label PNG {file_name}: its pixels are {bits}-bit {_KINDS.get(kind, kind)}; a class is one byte, 8-bit gray or an "
            f"index of a palette, which has room for {MAX_CLASSES} classes"
        )
    return size


def read_label_png(label: LabelPng, size: tuple[int, int]) -> np.ndarray:
    """Classes of the pixels, (H, W) uint8, `UNLABELLED` where there is no label.

    Args:
        size: (height, width) of the image.

    Raises:
        UserError: see `label_png_size`; also where the file is damaged, of another size, or has a value that is neither a class
            nor the one of pixels without a label.
    """
    height, width = label_png_size(label.file_name)
    if (height, width) != size:
        raise UserError(
            f"label PNG {label.file_name} is {width} x {height} pixels (width x height), but its image is {size[1]} x {size[0]}"
        )
    try:
        with open_image(label.file_name, ("PNG",)) as image:
            values, counts = np.array(image), np.array(image.histogram())
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"label PNG {label.file_name} cannot be read: {' '.join(str(error).split())}") from error
    classes, allowed = _table(label.num_classes, label.ignore_value, label.values)
    if counts[~allowed].any():
        raise UserError(f"label PNG {label.file_name} has {_wrong_values(counts, allowed, label)}")
    return values if label.values == () and label.ignore_value == UNLABELLED else np.take(classes, values)


@lru_cache
def _table(num_classes: int, ignore_value: int, values: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the 256 values of a byte its class or `UNLABELLED`, and whether it may be in a file."""
    classes, allowed = np.full(256, UNLABELLED, dtype=np.uint8), np.zeros(256, dtype=bool)
    known = values or tuple(range(num_classes))
    classes[: len(known)], allowed[: len(known)] = known, True
    classes[ignore_value], allowed[ignore_value] = UNLABELLED, True
    return classes, allowed


def _wrong_values(counts: np.ndarray, allowed: np.ndarray, label: LabelPng) -> str:
    wrong = np.flatnonzero((counts > 0) & ~allowed)
    text = f"{counts[wrong[0]]} pixels of value {wrong[0]}" if counts[wrong[0]] > 1 else f"a pixel of value {wrong[0]}"
    if len(wrong) > 1:
        text += f", and {counts[wrong[1:]].sum()} of {len(wrong) - 1} other values that are none"
    if label.values:
        return f"{text}; values 0 to {len(label.values) - 1} are known, and {label.ignore_value} is for pixels without a label"
    return (
        f"{text}; there are {label.num_classes} classes, 0 to {label.num_classes - 1}, and {label.ignore_value} is for pixels "
        f"without a label"
    )
