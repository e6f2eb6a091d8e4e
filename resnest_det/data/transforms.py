"""Geometric augmentation: random transforms of an image, and how they move pixels, boxes, polygons and bitmasks.

Coordinates are continuous: a pixel (i, j) covers [j, j + 1] x [i, i + 1], and an image of size (H, W) spans [0, W] x [0, H].
Arithmetic is that of Detectron2's RandomCrop, RandomCrop_CategoryAreaConstraint, ResizeShortestEdge and RandomFlip, and of
PyTorch-Encoding's `_sync_transform` for longest edges and padding, so that the same draw gives the same pixels and boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from resnest_det.data.colors import Recolor
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.polygons import clip_polygon
from resnest_det.errors import ArgumentError

CROP_KINDS = ("relative", "relative_range", "absolute", "absolute_range")
SAMPLINGS = ("choice", "range")
LIBRARIES = ("pillow", "torch")
FLIP_DIRECTIONS = ("horizontal", "vertical")
_MOST_WINDOWS = 10  # as in Detectron2


@dataclass(frozen=True)
class Resize:
    """Scale an image of `old_size` to `new_size`, both (height, width), by one of `LIBRARIES`."""

    old_size: tuple[int, int]
    new_size: tuple[int, int]
    library: str = "pillow"

    @property
    def size(self) -> tuple[int, int]:
        """That of the result, under the name that every transform has for it."""
        return self.new_size

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> (new H, new W, C), Pillow's antialiased bilinear filter."""
        if pixels.strides[-1] < 0:  # BGR, of an image that was read as RGB: to copy it takes a quarter of the time of resizing it
            return self.image(pixels[:, :, ::-1])[:, :, ::-1]
        if self.library == "pillow":
            return self._resample(pixels, Image.Resampling.BILINEAR)
        rows = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
        return F.interpolate(rows, self.new_size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) uint8 -> (new H, new W), nearest neighbour."""
        return self._resample(mask, Image.Resampling.NEAREST)

    def points(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) x, y -> (N, 2)."""
        (old_height, old_width), (new_height, new_width) = self.old_size, self.new_size
        return points * np.array([new_width / old_width, new_height / old_height])

    def polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.points(polygon) for polygon in polygons]

    def _resample(self, pixels: np.ndarray, method: Image.Resampling) -> np.ndarray:
        one_channel = pixels.ndim == 3 and pixels.shape[2] == 1
        resized = Image.fromarray(pixels[:, :, 0] if one_channel else pixels).resize(self.new_size[::-1], method)
        return np.asarray(resized)[:, :, None] if one_channel else np.asarray(resized)


@dataclass(frozen=True)
class Flip:
    """Mirror an image of `size` (height, width), left to right when `horizontal`, else upside down."""

    size: tuple[int, int]
    horizontal: bool

    def image(self, pixels: np.ndarray) -> np.ndarray:
        return np.flip(pixels, axis=1 if self.horizontal else 0)

    mask = image

    def points(self, points: np.ndarray) -> np.ndarray:
        column = 0 if self.horizontal else 1
        flipped = points.copy()
        flipped[:, column] = self.size[1 - column] - points[:, column]
        return flipped

    def polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.points(polygon) for polygon in polygons]


@dataclass(frozen=True)
class Crop:
    """Keep the window of `size` (height, width) whose upper left corner is at (x0, y0)."""

    x0: int
    y0: int
    size: tuple[int, int]

    def image(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[self.y0 : self.y0 + self.size[0], self.x0 : self.x0 + self.size[1]]

    mask = image

    def points(self, points: np.ndarray) -> np.ndarray:
        return points - np.array([self.x0, self.y0])

    def polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Each polygon clipped at the window's border; it may fall into several pieces, or vanish."""
        return [piece for polygon in polygons for piece in clip_polygon(self.points(polygon), self.size)]


@dataclass(frozen=True)
class Pad:
    """Add black pixels below and to the right, from an image of `old_size` to one of `size`, both (height, width)."""

    old_size: tuple[int, int]
    size: tuple[int, int]

    def image(self, pixels: np.ndarray) -> np.ndarray:
        return self._padded(pixels, 0)

    mask = image

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) uint8 -> (new H, new W); what is added has no label."""
        return self._padded(labels, UNLABELLED)

    def points(self, points: np.ndarray) -> np.ndarray:
        return points

    def polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return polygons

    def _padded(self, pixels: np.ndarray, value: int) -> np.ndarray:
        padded = np.full((*self.size, *pixels.shape[2:]), value, dtype=pixels.dtype)
        padded[: self.old_size[0], : self.old_size[1]] = pixels
        return padded


Transform = Resize | Flip | Crop | Pad | Recolor


def long_side_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) with the longer side at `long_side`."""
    if height > width:
        return long_side, max(1, int(width * long_side / height + 0.5))
    return max(1, int(height * long_side / width + 0.5)), long_side


def short_side_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short_side`, or less if the longer would exceed `max_side`."""
    scale = short_side / min(height, width)
    # The short side is set, not multiplied: one rounding error here can move the last `+ 0.5` by a whole pixel.
    new_height, new_width = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_height, new_width) > max_side:
        shrink = max_side / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


class AugmentationStep(Protocol):
    """One thing that may be done to a training image. What it draws is a function of its own values and of `generator` alone."""

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Transform | None:
        """What is done to one showing of an image of that size; None leaves it as it is.

        Args:
            labels: of the pixels, (height, width) uint8, for steps that look at them.
        """


@dataclass(frozen=True)
class RandomCrop:
    """Keep a window of the image, at a place drawn evenly.

    Args:
        max_area: where labels of the pixels are given, the place is drawn again, up to ten times in all, until the window has
            two classes and none has as large a part of what is labelled as this; 1 takes every window.
        kind: what `size` means: "relative" (height, width) fractions; "relative_range" fractions drawn between these and 1;
            "absolute" (height, width) pixels; "absolute_range" both sides drawn between (min, max) pixels. A window never
            exceeds the image.

    Raises:
        ArgumentError: the kind is unknown, or the size is none of that kind.
    """

    kind: str
    size: tuple[float, float]
    max_area: float = 1.0

    def __post_init__(self):
        if self.kind not in CROP_KINDS:
            raise ArgumentError("kind", f"is {self.kind!r}; supported: {', '.join(CROP_KINDS)}")
        if not 0 < self.max_area <= 1:
            raise ArgumentError("max_area", f"is {self.max_area:g}; it must be above 0, and 1 at most")
        if self.kind.startswith("relative"):
            valid, wanted = all(0 < side <= 1 for side in self.size), "fractions in (0, 1]"
        else:
            valid, wanted = _are_whole(self.size, 1), "whole numbers of pixels"
        if self.kind == "absolute_range":
            valid, wanted = valid and self.size == tuple(sorted(self.size)), f"{wanted}, the smaller first"
        if len(self.size) != 2 or not valid:
            raise ArgumentError("size", f"is {self.size}; for a crop of kind {self.kind} it must be two {wanted}")

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Crop:
        """A window of an image of that size."""
        crop = self._draw_window(height, width, generator)
        if labels is not None and self.max_area < 1:
            for _ in range(_MOST_WINDOWS - 1):
                counts = np.bincount(crop.mask(labels).ravel(), minlength=UNLABELLED + 1)[:UNLABELLED]
                if (counts > 0).sum() > 1 and counts.max() < counts.sum() * self.max_area:
                    break
                crop = self._draw_window(height, width, generator)
        return crop

    def _draw_window(self, height: int, width: int, generator: np.random.Generator) -> Crop:
        crop_height, crop_width = self._draw_size(height, width, generator)
        y0 = int(generator.integers(height - crop_height + 1))
        x0 = int(generator.integers(width - crop_width + 1))
        return Crop(x0, y0, (crop_height, crop_width))

    def _draw_size(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int]:
        first, second = self.size
        if self.kind == "relative_range":
            # In single precision first, as in Detectron2.
            fractions = np.array([first, second], dtype=np.float32)
            first, second = fractions + generator.random(2) * (1 - fractions)
        if self.kind.startswith("relative"):
            return max(1, int(height * first + 0.5)), max(1, int(width * second + 0.5))
        if self.kind == "absolute":
            return min(first, height), min(second, width)
        return tuple(int(generator.integers(min(side, first), min(side, second) + 1)) for side in (height, width))


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Bring the shorter side to a length that is drawn, or to less where the longer side would exceed `max_side`.

    Args:
        short_sides: lengths to choose from, or the two ends of a range (both included), by `sampling`, "choice" or "range";
            0 keeps the size.
        max_side: no side grows beyond this.
        library: of `LIBRARIES`, for images; "torch" takes half of the time, and is 1 of 255 away in some of ten thousand values.

    Raises:
        ArgumentError: lengths that are no whole numbers, none at all or no range, or a sampling or a library that is unknown.
    """

    short_sides: tuple[int, ...]
    max_side: int
    sampling: str = "choice"
    library: str = "pillow"

    def __post_init__(self):
        if self.library not in LIBRARIES:
            raise ArgumentError("library", f"is {self.library!r}; supported: {', '.join(LIBRARIES)}")
        if self.sampling not in SAMPLINGS:
            raise ArgumentError("sampling", f"is {self.sampling!r}; supported: {', '.join(SAMPLINGS)}")
        if not self.short_sides or not _are_whole(self.short_sides, 0):
            raise ArgumentError("short_sides", f"is {self.short_sides}; it must be one or more whole numbers of pixels")
        if self.sampling == "range" and not (len(self.short_sides) == 2 and self.short_sides[0] <= self.short_sides[1]):
            raise ArgumentError("short_sides", f"is {self.short_sides}; with range sampling it must be (smallest, largest)")
        if not _are_whole((self.max_side,), 1):
            raise ArgumentError("max_side", f"is {self.max_side}; it must be a whole number of pixels")

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Resize | None:
        """To one of the sizes that are possible."""
        if self.sampling == "range":
            short_side = int(generator.integers(self.short_sides[0], self.short_sides[1] + 1))
        else:
            short_side = int(generator.choice(self.short_sides))
        if short_side == 0:
            return None
        return Resize((height, width), short_side_size(height, width, short_side, self.max_side), self.library)


@dataclass(frozen=True)
class ResizeLongestEdge:
    """Bring the longer side to a length drawn evenly from `smallest` to `largest`, both included.

    Raises:
        ArgumentError: they are no whole numbers in that order.
    """

    long_sides: tuple[int, int]

    def __post_init__(self):
        if len(self.long_sides) != 2 or not _are_whole(self.long_sides, 1) or self.long_sides[0] > self.long_sides[1]:
            raise ArgumentError("long_sides", f"is {self.long_sides}; it must be two whole numbers of pixels, the smaller first")

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Resize:
        """To one of the sizes that are possible."""
        long_side = int(generator.integers(self.long_sides[0], self.long_sides[1] + 1))
        return Resize((height, width), long_side_size(height, width, long_side))


@dataclass(frozen=True)
class PadTo:
    """Pad images that are smaller to `size` (height, width).

    Raises:
        ArgumentError: it is no size in pixels.
    """

    size: tuple[int, int]

    def __post_init__(self):
        if len(self.size) != 2 or not _are_whole(self.size, 1):
            raise ArgumentError("size", f"is {self.size}; to be padded to, it must be two whole numbers of pixels")

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Pad | None:
        """What an image of that size lacks; nothing is random."""
        padded = max(height, self.size[0]), max(width, self.size[1])
        return Pad((height, width), padded) if padded != (height, width) else None


@dataclass(frozen=True)
class RandomFlip:
    """Mirror every second image on average: `direction` "horizontal" swaps left and right, "vertical" top and bottom.

    Raises:
        ArgumentError: the direction is unknown.
    """

    direction: str = "horizontal"

    def __post_init__(self):
        if self.direction not in FLIP_DIRECTIONS:
            raise ArgumentError("direction", f"is {self.direction!r}; supported: {', '.join(FLIP_DIRECTIONS)}")

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Flip | None:
        """A flip, or none, with equal chances."""
        return Flip((height, width), horizontal=self.direction == "horizontal") if generator.random() < 0.5 else None


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image: `steps` that draw in turn, each for the size that those before it leave."""

    steps: tuple[AugmentationStep, ...] = ()

    @property
    def looks_at_labels(self) -> bool:
        """Whether a step draws otherwise where it is given the labels of the pixels."""
        return any(isinstance(step, RandomCrop) and step.max_area < 1 for step in self.steps)

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> list[Transform]:
        """Draw the transforms for one sample of an image of that size, in the order of application.

        Args:
            labels: of its pixels, (height, width) uint8, if a step looks at them.
        """
        transforms: list[Transform] = []
        size = (height, width)
        for step in self.steps:
            transform = step.draw(*size, generator, labels)
            if transform is not None:
                transforms.append(transform)
                size = transform.size
                labels = None if labels is None else transform_labels(labels, [transform])
        return transforms


def _are_whole(numbers: Sequence[object], least: int) -> bool:
    return all(isinstance(number, int) and number >= least for number in numbers)


def transform_image(pixels: np.ndarray, transforms: list[Transform]) -> np.ndarray:
    """(H, W, C) uint8 -> (H', W', C) uint8; may be a view with negative strides."""
    for transform in transforms:
        pixels = transform.image(pixels)
    return pixels


def transform_mask(mask: np.ndarray, transforms: list[Transform]) -> np.ndarray:
    """(H, W) uint8, 0 and 1 -> (H', W')."""
    for transform in transforms:
        mask = transform.mask(mask)
    return mask


def transform_labels(labels: np.ndarray, transforms: list[Transform]) -> np.ndarray:
    """(H, W) uint8 classes of pixels -> (H', W'); `UNLABELLED` where an image is padded."""
    for transform in transforms:
        labels = transform.labels(labels) if isinstance(transform, Pad) else transform.mask(labels)
    return labels


def transform_polygons(polygons: list[np.ndarray], transforms: list[Transform]) -> list[np.ndarray]:
    """Polygons (k, 2) of one object -> its polygons afterwards; none where a crop left nothing."""
    for transform in transforms:
        polygons = transform.polygons(polygons)
    return polygons


def transform_boxes(boxes: np.ndarray, transforms: list[Transform], size: tuple[int, int]) -> np.ndarray:
    """(N, 4) XYXY -> (N, 4) XYXY, clipped to the new image's `size` (height, width)."""
    corners = boxes.reshape(-1, 2)
    for transform in transforms:
        corners = transform.points(corners)
    corners = corners.reshape(-1, 2, 2)
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    height, width = size
    return np.minimum(moved.clip(min=0), np.array([width, height, width, height]))
