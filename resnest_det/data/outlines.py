"""Polygons and run lengths of annotations, checked all at once against the images that they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.data.annotation_files import Annotation, RunLengths
from resnest_det.errors import UserError

# Rasterising takes memory by the length of an outline; the longest of COCO are some ten thousand pixels.
_MAX_OUTLINE = 5_000_000


def slack_of(sides: np.ndarray) -> np.ndarray:
    """By how much boxes and polygons may overshoot sides of an image: 2 pixels or a hundredth."""
    return np.maximum(2.0, 0.01 * sides)


@dataclass(frozen=True)
class Outlines:
    """Segmentations of N annotations, as they rasterise.

    Attributes:
        polygons: (N,) int32, how many polygons of three or more points each has.
        points: (P,) int32, points of each polygon, in the order of the annotations.
        coordinates: (sum of points, 2) float64, x and y.
        run_lengths: compressed ones by the position of the annotation; an empty mask where no polygon has three points.
        pointless: (N,) bool, those whose polygons all had fewer than three points.
    """

    polygons: np.ndarray
    points: np.ndarray
    coordinates: np.ndarray
    run_lengths: dict[int, bytes]
    pointless: np.ndarray


def check_outlines(annotations: Sequence[Annotation], sides: np.ndarray, trained: np.ndarray, json_file: str) -> Outlines:
    """Check the segmentations of annotations; some ten thousand at a time fit into memory.

    Args:
        sides: (N, 2) int, width and height of the image of each.
        trained: (N,) bool, those that have a box inside their image; the polygons of others may lie anywhere.

    Raises:
        UserError: a coordinate is not finite, polygons do not lie where their image is or are endless, points are pairs, or
            run lengths are not those of a mask of the image; the message names the file and the annotation.
    """
    segmentations = [annotation.segmentation for annotation in annotations]
    run_lengths = {
        position: compressed(each, annotations[position].image_id, *sides[position].tolist()[::-1],
                             f"{json_file}: {annotations[position].called()}")["counts"]
        for position, each in enumerate(segmentations)
        if isinstance(each, RunLengths)
    }  # fmt: skip
    lists = [[] if position in run_lengths else each or [] for position, each in enumerate(segmentations)]
    polygons = np.fromiter(map(len, lists), dtype=np.int32, count=len(lists))
    lengths = np.fromiter(map(len, chain.from_iterable(lists)), dtype=np.int32, count=polygons.sum())
    pointless = np.zeros(len(lists), dtype=bool)
    good = (lengths >= 6) & (lengths % 2 == 0)
    if not good.all():
        owner = np.repeat(np.arange(len(lists)), polygons)
        for position in np.unique(owner[~good]).tolist():
            _check_not_pairs(annotations[position], json_file)
            lists[position] = [polygon for polygon in lists[position] if len(polygon) >= 6 and len(polygon) % 2 == 0]
            if not lists[position]:
                pointless[position] = True
                run_lengths[position] = _empty_mask(*sides[position].tolist()[::-1])
        polygons, lengths = np.bincount(owner[good], minlength=len(lists)).astype(np.int32), lengths[good]
    numbers = chain.from_iterable(chain.from_iterable(lists))
    coordinates = np.fromiter(numbers, dtype=np.float64, count=lengths.sum()).reshape(-1, 2)
    outlines = Outlines(polygons, lengths // 2, coordinates, run_lengths, pointless)
    if len(coordinates):
        _check_polygons(outlines, annotations, sides, trained, json_file)
    return outlines


def _check_not_pairs(annotation: Annotation, json_file: str) -> None:
    lengths = [len(polygon) for polygon in annotation.segmentation]
    if len(lengths) >= 3 and set(lengths) == {2}:
        raise UserError(
            f"{json_file}: {annotation.called()}: segmentation holds points [[x0, y0], ...]; COCO's format is a list of "
            "polygons [[x0, y0, x1, y1, ...], ...]"
        )


def _check_polygons(outlines: Outlines, annotations: Sequence, sides: np.ndarray, trained: np.ndarray, json_file: str) -> None:
    indices = np.flatnonzero(outlines.polygons)
    coordinates, points, per_annotation = outlines.coordinates, outlines.points.astype(np.int64), outlines.polygons[indices]
    first_point = np.cumsum(points) - points
    first_polygon = np.cumsum(per_annotation) - per_annotation
    begins = first_point[first_polygon]

    sides = sides[indices].astype(np.float64)
    columns = np.ascontiguousarray(coordinates.T)  # numpy reduces rows of two numbers ten times as slowly
    low = np.stack([np.minimum.reduceat(column, begins) for column in columns], axis=1)
    high = np.stack([np.maximum.reduceat(column, begins) for column in columns], axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        extent = np.maximum(high - low, 1e-9)
        within = np.minimum(high, sides + slack_of(sides)) - np.maximum(low, -slack_of(sides))
        # The comparisons are written so that they also fail where a coordinate is not a number.
        fits = np.isfinite(extent).all(axis=1) & (within >= 0).all(axis=1)
        fits &= np.prod(np.minimum((within + 1e-9) / extent, 1.0), axis=1) >= 0.5
        # No outline is longer than the rectangle around it, once for each point. Few may be, and are followed.
        lengths = np.add.reduceat(points, first_polygon) * extent.max(axis=1)
        if not (lengths <= _MAX_OUTLINE).all():
            steps = np.abs(np.diff(coordinates, axis=0, append=coordinates[:1])).max(axis=1)
            ends = first_point + points - 1
            steps[ends] = np.abs(coordinates[first_point] - coordinates[ends]).max(axis=1)
            lengths = np.add.reduceat(steps, begins)
        finite = np.isfinite(lengths)
    fits |= ~trained[indices]
    wrong = np.flatnonzero(~fits | ~(lengths <= _MAX_OUTLINE))
    if not len(wrong):
        return
    at = int(wrong[0])
    where = f"{json_file}: {annotations[indices[at]].called()}"
    if not finite[at]:
        raise UserError(f"{where}: segmentation has a coordinate that is not a finite number")
    width, height = (int(side) for side in sides[at])
    if not fits[at]:
        raise UserError(
            f"{where}: its polygons span x {low[at][0]:g} to {high[at][0]:g}, y {low[at][1]:g} to {high[at][1]:g}, which does "
            f"not fit the image of {width} x {height} pixels (width x height); clip them to the image, or leave the object out"
        )
    raise UserError(
        f"{where}: its polygons are {lengths[at]:.3g} pixels long, in an image of {width} x {height} pixels (width x height)"
    )


def compressed(run_lengths: RunLengths, image_id: int, height: int, width: int, where: str) -> dict:
    """Either run-length form, checked against the image and compressed, as pycocotools takes it.

    Raises:
        UserError: it is not a mask of the image; the message begins with `where`.
    """
    size, counts = run_lengths.size, run_lengths.counts
    if size != [height, width]:
        raise UserError(f"{where}: the mask is {str(size)[:80]} (height, width), but image {image_id} is [{height}, {width}]")
    lengths = _run_lengths(counts) if isinstance(counts, str) else _whole_numbers(counts)
    if lengths is None or (lengths < 0).any():
        raise UserError(f"{where}: run-length counts must be a string of COCO's encoding or a list of whole numbers")
    # pycocotools fills the pixels that are missing with whatever memory held.
    if lengths.sum() != size[0] * size[1]:
        raise UserError(f"{where}: run-length counts sum to {lengths.sum()}, but the image has {size[0]} x {size[1]} pixels")
    if isinstance(counts, str):
        encoded = {"size": size, "counts": counts.encode()}
    else:
        encoded = mask_util.frPyObjects({"size": size, "counts": lengths.tolist()}, *size)
    if (lengths[1:] == 0).any():
        # Two such runs that meet end the comparison of masks early, in C.
        encoded = mask_util.encode(mask_util.decode(encoded))
    return {"size": size, "counts": encoded["counts"]}


def _empty_mask(height: int, width: int) -> bytes:
    return mask_util.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)["counts"]


def _whole_numbers(counts: list[int]) -> np.ndarray | None:
    try:
        lengths = np.array(counts, dtype=np.int64)
    except OverflowError:
        return None
    # Each of them below 2 ** 32, so that no sum of them wraps around.
    return lengths if len(lengths) and lengths.max() < 2**32 else None


def _run_lengths(counts: str) -> np.ndarray | None:
    """Lengths of the runs in COCO's compressed string, (n,) int64, or None if it is no such string.

    The format is that of pycocotools' maskApi.c (rleToString): groups of five bits, the lowest first, as characters from 48;
    32 marks that another group follows, 16 in the last one a negative number; from the fourth number on, differences to
    the number two before. Numbers of more than six groups are refused: C shifts them out of its integers.
    """
    codes = np.array([ord(character) for character in counts], dtype=np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 5:
        return None
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= ((codes[ends] & 16) >> 4) << (5 * (ends - starts + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
