"""Anchors: boxes of fixed sizes and aspect ratios at every position of every feature map (Faster R-CNN, section 3.1.1)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from resnest_det.errors import ArgumentError

MOST = 1e6  # a side in pixels or a ratio
MOST_AT_A_POSITION = 1000


class AnchorGenerator(nn.Module):
    """Lays anchors over feature maps.

    Args:
        sizes: for each level the square roots of the anchors' areas, in input pixels.
        aspect_ratios: for each level the ratios height / width.
        strides: stride of each level in input pixels.
        offset: position of the first anchor's center, in strides from the corner of the image; in [0, 1).

    Of `sizes` and `aspect_ratios` one list is enough for all levels.

    Raises:
        ArgumentError: the number of lists is neither one nor that of the levels, levels have different numbers of anchors, or too
            many, or a size or ratio is none.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ):
        super().__init__()
        self.strides = tuple(strides)
        self.offset = offset
        sizes = _one_per_level(sizes, len(strides), "sizes")
        aspect_ratios = _one_per_level(aspect_ratios, len(strides), "aspect_ratios")
        for name, levels in (("sizes", sizes), ("aspect_ratios", aspect_ratios)):
            if not all(0 < value < MOST for values in levels for value in values):
                raise ArgumentError(name, f"has a value that is not above 0 and below {MOST:g}")
        if max(len(s) * len(r) for s, r in zip(sizes, aspect_ratios)) > MOST_AT_A_POSITION:
            raise ArgumentError("sizes", f"gives more than {MOST_AT_A_POSITION} anchors at a position")
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, aspect_ratios)):
            self.register_buffer(f"cell{level}", cell_anchors(level_sizes, level_ratios), persistent=False)
        counts = {len(s) * len(r) for s, r in zip(sizes, aspect_ratios)}
        if len(counts) != 1:
            raise ArgumentError("sizes", f"gives levels {sorted(counts)} anchors at a position; all need the same number")
        self.anchors_per_position = counts.pop()

    def forward(self, grid_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """For each level, given the (height, width) of its map: (height * width * A, 4) anchors, A changing fastest."""
        return [self._grid(level, height, width) for level, (height, width) in enumerate(grid_sizes)]

    def _grid(self, level: int, height: int, width: int) -> Tensor:
        cell, stride = getattr(self, f"cell{level}"), self.strides[level]
        columns = torch.arange(width, device=cell.device, dtype=torch.float32) * stride + self.offset * stride
        rows = torch.arange(height, device=cell.device, dtype=torch.float32) * stride + self.offset * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        return (centers + cell).reshape(-1, 4)


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """(len(sizes) * len(aspect_ratios), 4) anchors centerd on the origin, ratios changing fastest."""
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)


def overlaps_of_shapes(
    shapes: np.ndarray, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[Sequence[float]]
) -> np.ndarray:
    """IoU of boxes with anchors on the same centers, the best case.

    Args:
        shapes: (M, 2) width and height.
        sizes, aspect_ratios: see `AnchorGenerator`.

    Returns:
        (M, K) for the K shapes of anchors of all levels.
    """
    levels = max(len(sizes), len(aspect_ratios)) if isinstance(sizes[0], Sequence) else 1
    pairs = zip(_one_per_level(sizes, levels, "sizes"), _one_per_level(aspect_ratios, levels, "aspect_ratios"))
    anchors = torch.cat([cell_anchors(*pair) for pair in pairs])
    anchors = (anchors[:, 2:] - anchors[:, :2]).double().numpy()
    shared = np.minimum(shapes[:, None], anchors).prod(axis=2)
    return shared / (shapes.prod(axis=1)[:, None] + anchors.prod(axis=1) - shared)


def _one_per_level(values: Sequence, num_levels: int, name: str) -> list:
    if not values or not isinstance(values[0], Sequence):
        values = [values]
    if len(values) == 1:
        values = list(values) * num_levels
    if len(values) != num_levels or not all(len(level_values) for level_values in values):
        raise ArgumentError(name, f"has {len(values)} lists for {num_levels} levels; supported: one for all or one for each")
    return list(values)
