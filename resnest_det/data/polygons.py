"""Polygon geometry: clipping at a window's border, area, bounding box, rasterisation."""

import numpy as np
import pycocotools.mask as mask_util


def polygon_area(polygon: np.ndarray) -> float:
    """The area enclosed by a closed polygon (k, 2) (shoelace formula), never negative."""
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def rasterize(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The union of polygons (k, 2) as (H, W) uint8 of 0 and 1, by COCO's own rule."""
    if not polygons:
        return np.zeros(size, dtype=np.uint8)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects([p.reshape(-1).tolist() for p in polygons], *size)))


def clip_polygon(polygon: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """The part of a polygon (k, 2) inside [0, W] x [0, H], size = (H, W), as zero or more polygons.

    A polygon that lies inside comes back as it is. Sutherland and Hodgman's method (one border after the other, 1974), but
    where a border cuts a concave polygon into pieces they come back apart: the method's seams along the border would
    stretch the object's bounding box as far as a corner that it never touched.
    """
    height, width = size
    pieces = [polygon]
    # Distances are exact at the border's line, so a clipped vertex lies on the border to the last bit.
    for axis, sign, border in ((0, 1.0, 0.0), (0, -1.0, float(width)), (1, 1.0, 0.0), (1, -1.0, float(height))):
        pieces = [part for piece in pieces for part in _clip_half_plane(piece, axis, sign, border)]
    return [piece for piece in pieces if len(piece) >= 3 and polygon_area(piece) > 1e-9]


def _clip_half_plane(polygon: np.ndarray, axis: int, sign: float, border: float) -> list[np.ndarray]:
    """The parts of a polygon where sign * (coordinate - border) >= 0."""
    distance = sign * (polygon[:, axis] - border)
    if (distance >= 0).all():
        return [polygon]
    inside = distance > 0
    if not inside.any():
        return []

    # Start outside, so that every stretch inside is a whole chain: crossing, vertices, crossing.
    start = int(np.argmin(inside))
    order = np.roll(np.arange(len(polygon)), -start)
    chains: list[list[np.ndarray]] = []
    for here, there in zip(order, np.roll(order, -1)):
        if inside[here] != inside[there]:
            t = distance[here] / (distance[here] - distance[there])
            crossing = polygon[here] + t * (polygon[there] - polygon[here])
            crossing[axis] = border
            if inside[there]:
                chains.append([crossing])
            else:
                chains[-1].append(crossing)
        if inside[there]:
            chains[-1].append(polygon[there])

    # Along the border, the polygon's inside lies between the 1st and 2nd crossing, the 3rd and 4th, ...
    crossings = [(chain[end][1 - axis], index, end) for index, chain in enumerate(chains) for end in (0, -1)]
    crossings.sort(key=lambda crossing: crossing[0])
    follows = {}
    for (_, first, first_end), (_, second, second_end) in zip(crossings[::2], crossings[1::2]):
        if first_end == second_end:
            # Only if the outline crosses itself; the seams of the plain method are then harmless enough.
            return [np.array([point for chain in chains for point in chain])]
        leaving, entering = (first, second) if first_end == -1 else (second, first)
        follows[leaving] = entering

    pieces = []
    while follows:
        index = next(iter(follows))
        points = []
        while index in follows:
            points.extend(chains[index])
            index = follows.pop(index)
        pieces.append(np.array(points))
    return pieces


def outline(mask: np.ndarray) -> np.ndarray | None:
    """The polygon (k, 2) along the pixel borders of a mask (H, W), or None unless one simple closed line surrounds it.

    None means: empty, several pieces, a hole, or pieces that touch at a corner only.
    """
    padded = np.pad(mask.astype(bool), 1)
    center = padded[1:-1, 1:-1]
    follows: dict[tuple[int, int], tuple[int, int]] = {}
    edges = 0
    # Clockwise around every pixel, each side whose neighbour is outside, from corner to corner.
    for neighbour, (x0, y0), (x1, y1) in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in zip(*(index.tolist() for index in np.nonzero(center & ~neighbour))):
            follows[x + x0, y + y0] = (x + x1, y + y1)
            edges += 1
    if not edges or len(follows) < edges:
        return None
    start = here = next(iter(follows))
    corners, steps, direction = [], 0, None
    while steps == 0 or here != start:
        there = follows[here]
        turned = (there[0] - here[0], there[1] - here[1])
        if turned != direction:
            corners.append(here)
        here, direction, steps = there, turned, steps + 1
    return np.array(corners, dtype=np.float64) if steps == edges else None
