"""Geometric augmentation: random transforms of an image, and how they move pixels, boxes, polygons and bitmasks.

Coordinates are continuous: a pixel (i, j) covers [j, j + 1] x [i, i + 1], and an image of size (H, W) spans [0, W] x [0, H].
Arithmetic and order (crop, resize, flip) are those of Detectron2's ResizeShortestEdge, RandomFlip and RandomCrop, so that the
same draw gives the same pixels and boxes.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from resnest_det.data.polygons import clip_polygon


@dataclass(frozen=True)
class Resize:
    """Scale an image of `old_size` to `new_size`, both (height, width)."""

    old_size: tuple[int, int]
    new_size: tuple[int, int]

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> (new H, new W, C), Pillow's antialiased bilinear filter."""
        return self._resample(pixels, Image.Resampling.BILINEAR)

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


Transform = Resize | Flip | Crop


def short_side_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short_side`, or less if the longer would exceed `max_side`."""
    scale = short_side / min(height, width)
    # The short side is set, not multiplied: one rounding error here can move the last `+ 0.5` by a whole pixel.
    new_height, new_width = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_height, new_width) > max_side:
        shrink = max_side / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


@dataclass(frozen=True)
class Augmentation:
    """The random transforms of a training image.

    Attributes:
        short_sides: lengths to choose from, or the two ends of a range (both included), by `sampling`, "choice" or "range";
            0 keeps the size.
        max_side: no side grows beyond this.
        flip: "horizontal", "vertical" or "none"; with probability one half.
        crop: None, or a kind with its two numbers: "relative" (height, width) fractions; "relative_range" fractions
            drawn between these and 1; "absolute" (height, width) pixels; "absolute_range" both sides drawn between
            (min, max) pixels. A crop never exceeds the image.
    """

    short_sides: tuple[int, ...]
    max_side: int
    sampling: str = "choice"
    flip: str = "horizontal"
    crop: tuple[str, tuple[float, float]] | None = None

    def draw(self, height: int, width: int, generator: np.random.Generator) -> list[Transform]:
        """Draw the transforms for one sample of an image of that size, in the order of application."""
        transforms: list[Transform] = []
        size = (height, width)
        if self.crop is not None:
            crop_height, crop_width = self._draw_crop_size(height, width, generator)
            y0 = int(generator.integers(height - crop_height + 1))
            x0 = int(generator.integers(width - crop_width + 1))
            size = (crop_height, crop_width)
            transforms.append(Crop(x0, y0, size))
        if self.sampling == "range":
            short_side = int(generator.integers(self.short_sides[0], self.short_sides[1] + 1))
        else:
            short_side = int(generator.choice(self.short_sides))
        if short_side > 0:
            transforms.append(Resize(size, short_side_size(*size, short_side, self.max_side)))
            size = transforms[-1].new_size
        if self.flip != "none" and generator.random() < 0.5:
            transforms.append(Flip(size, horizontal=self.flip == "horizontal"))
        return transforms

    def _draw_crop_size(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int]:
        kind, (first, second) = self.crop
        if kind in ("relative", "relative_range"):
            fractions = np.array([first, second], dtype=np.float32)
            if kind == "relative_range":
                fractions = fractions + generator.random(2) * (1 - fractions)
            else:
                fractions = np.array([first, second])
            return max(1, int(height * fractions[0] + 0.5)), max(1, int(width * fractions[1] + 0.5))
        first, second = int(first), int(second)
        if kind == "absolute":
            return min(first, height), min(second, width)
        return tuple(int(generator.integers(min(side, first), min(side, second) + 1)) for side in (height, width))


def transform_image(pixels: np.ndarray, transforms: list[Transform]) -> np.ndarray:
    """(H, W, C) uint8 -> (H', W', C) uint8; may be a view with negative strides."""
    for transform in transforms:
        pixels = transform.image(pixels)
    return pixels


def transform_mask(mask: np.ndarray, transforms: list[Transform]) -> np.ndarray:
    """(H, W) uint8 labels, or 0 and 1 -> (H', W')."""
    for transform in transforms:
        mask = transform.mask(mask)
    return mask


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
