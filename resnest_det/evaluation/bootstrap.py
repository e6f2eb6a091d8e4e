"""How sure average precision is: confidence intervals by the bootstrap over images.

The images of an evaluation are drawn anew with replacement, many times, and AP is counted each time (Efron and Tibshirani,
An Introduction to the Bootstrap, chapters 10 and 13). Two detectors are compared on the same draws, so that how difficult the
images are falls out of their difference.
"""

from collections.abc import Collection
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from hotcoco import COCOeval

from resnest_det.evaluation.average_precision import counted

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
# Area ranges in pixels, by the end of the figure's name.
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
DRAWS = 100


@dataclass(frozen=True)
class MatchedDetections:
    """N objects and M detections of C classes in I images, the detections by descending score.

    Attributes:
        images, classes: how many there are.
        image, label, area, score: (M,) of each detection.
        match: (10, M) the object that it matches at each threshold of overlap, -1 where it is false, -2 where it does not count.
        object_image, object_label, object_area: (N,) of each object that counts; others have label -1.
    """

    images: int
    classes: int
    image: np.ndarray
    label: np.ndarray
    area: np.ndarray
    score: np.ndarray
    match: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_area: np.ndarray


def matched_detections(ground_truth: dict, detections: list[dict], task: str = "bbox") -> MatchedDetections:
    """Match detections with objects by COCO's rules at ten overlaps.

    Args:
        ground_truth, detections, task: see `resnest_det.evaluation.average_precision.figures_of_tasks`.
    """
    return matched_by(counted(ground_truth, detections, (task,), 100)[task], ground_truth, detections)


def matched_by(counting: COCOeval, ground_truth: dict, detections: list[dict]) -> MatchedDetections:
    """`matched_detections` of what has been counted already, by `resnest_det.evaluation.average_precision.counted`."""
    image_of = {each: number for number, each in enumerate(sorted({image["id"] for image in ground_truth["images"]}))}
    class_of = {each: number for number, each in enumerate(sorted({entry["id"] for entry in ground_truth["categories"]}))}
    objects = [each for each in ground_truth["annotations"] if each["image_id"] in image_of]
    match = np.full((len(THRESHOLDS), len(detections)), -2, dtype=np.int64)
    for row, threshold in zip(match, THRESHOLDS):
        said = counting.image_diagnostics(iou_thr=float(threshold))
        # Those that count have a status, and the right ones among them a partner.
        row[_numbers(said["dt_status"])] = -1
        partners = said["dt_match"]
        row[_numbers(partners)] = _numbers(partners.values())
    scores = np.array([each["score"] for each in detections])
    order = np.argsort(-scores, kind="stable")
    sides = np.array([each["bbox"][2:] for each in detections], dtype=float).reshape(-1, 2)
    return MatchedDetections(
        len(image_of),
        len(class_of),
        np.array([image_of[each["image_id"]] for each in detections], dtype=np.int64)[order],
        np.array([class_of[each["category_id"]] for each in detections], dtype=np.int64)[order],
        sides.prod(axis=1)[order],
        scores[order],
        match[:, order],
        np.array([image_of[each["image_id"]] for each in objects], dtype=np.int64),
        np.array([-1 if each["iscrowd"] else class_of[each["category_id"]] for each in objects], dtype=np.int64),
        np.array([each["area"] for each in objects], dtype=float),
    )


def _numbers(counted_from_one: Collection[int]) -> np.ndarray:
    return np.fromiter(counted_from_one, dtype=np.int64, count=len(counted_from_one)) - 1


def draw_images(images: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image counts, (1 + draws, images): once in the first row, which gives the AP itself; then as it is drawn."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(images, np.full(images, 1 / images), size=draws)
    return np.concatenate([np.ones((1, images)), drawn])


def average_precisions(matched: MatchedDetections, weights: np.ndarray, area: str = "") -> np.ndarray:
    """AP of each class with images counted as often as `weights` says.

    Detections of the right class that match an object of another size do not count, and neither do false ones of another size.

    Args:
        weights: (draws, images), whole numbers.
        area: a key of `AREAS`.

    Returns:
        (draws, 10 overlaps, classes), 0 to 1; nan where no object is drawn.
    """
    low, high = AREAS[area]
    fits = (matched.object_area >= low) & (matched.object_area <= high)
    inside = (matched.area >= low) & (matched.area <= high)
    result = np.full((len(weights), len(THRESHOLDS), matched.classes), np.nan)
    # A row for each image: sums over detections are then sums of whole rows.
    by_image = np.ascontiguousarray(weights.T, dtype=np.int32)
    for label in range(matched.classes):
        present = by_image[matched.object_image[(matched.object_label == label) & fits]].sum(axis=0)
        own = np.flatnonzero(matched.label == label)
        right_somewhere = np.flatnonzero((matched.match[:, own] >= 0).any(axis=0))
        own = own[: right_somewhere[-1] + 1] if len(right_somewhere) else own[:0]  # none after the last changes AP
        weight = by_image[matched.image[own]]  # (detections of the class, draws)
        totals: dict[bytes, np.ndarray] = {}  # what counts is mostly the same at all overlaps
        for row, match in enumerate(matched.match[:, own]):
            right = match >= 0
            right[right] = fits[match[right]]
            counts = right | ((match == -1) & inside[own])
            total = totals.get(counts.tobytes())
            if total is None:
                total = totals[counts.tobytes()] = np.cumsum(weight[counts], axis=0, dtype=np.int32)
            found = np.cumsum(weight[right], axis=0, dtype=np.int32)
            result[:, row, label] = _average(found, total[right[counts]], present)
    return result


def _average(found: np.ndarray, total: np.ndarray, present: np.ndarray) -> np.ndarray:
    """COCO's average of the precisions at 101 recalls, for each draw.

    Args:
        found, total: (n, draws) right and all detections up to each of the n right ones.
        present: (draws,) objects.
    """
    if not len(found):
        return np.where(present > 0, 0.0, np.nan)
    # Of several detections with the same recall, and of those after them, the best precision counts.
    precision = np.maximum.accumulate((found / np.maximum(total, 1))[::-1], axis=0)[::-1]
    recall = found / np.maximum(present, 1)
    # How many of the 101 recalls are reached; the quotient's rounding is mended by looking at the next.
    reached = (recall * (len(_RECALLS) - 1)).astype(np.int32)
    reached += 1 - (_RECALLS[reached] > recall)
    reached += np.append(_RECALLS, np.inf)[reached] <= recall
    gained = np.diff(reached, axis=0, prepend=0)
    return np.where(present > 0, (precision * gained).sum(axis=0) / len(_RECALLS), np.nan)


def mean_of_counted(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is not nan; nan where nothing is, as in a draw without an object."""
    counts = (~np.isnan(values)).sum(axis=-1)
    return np.nansum(values, axis=-1) / np.where(counts, counts, np.nan)


@dataclass(frozen=True)
class Estimate:
    """A figure, the ends of its 95 % confidence interval, and how probable it is above 0; nan where there is nothing to count."""

    value: float
    low: float
    high: float
    above_zero: float


def estimate(values: np.ndarray) -> Estimate:
    """What `values`, of the rows of `draw_images`, say of a figure.

    AP is higher on few images than on many, and as much higher again on draws from these. So the interval is that of a normal
    distribution around the figure less the difference of the draws' mean from it.
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or len(drawn) < 2:
        return Estimate(value, np.nan, np.nan, np.nan)
    center, deviation = 2 * value - float(drawn.mean()), float(drawn.std(ddof=1))
    if not deviation:
        return Estimate(value, center, center, float(center > 0))
    normal = NormalDist(center, deviation)
    return Estimate(value, normal.inv_cdf(0.025), normal.inv_cdf(0.975), 1 - normal.cdf(0))


@dataclass(frozen=True)
class BestThreshold:
    """The score from which the detections of a class have the best F1 at an overlap of 0.5, and what it gives (0 to 1)."""

    score: float
    precision: float
    recall: float


def best_thresholds(matched: MatchedDetections) -> list[BestThreshold | None]:
    """For each class; None where there are no objects, or no detection is right."""
    thresholds: list[BestThreshold | None] = []
    for label in range(matched.classes):
        own = np.flatnonzero((matched.label == label) & (matched.match[0] != -2))
        objects = int((matched.object_label == label).sum())
        found = np.cumsum(matched.match[0, own] >= 0)
        if not objects or not len(found) or not found[-1]:
            thresholds.append(None)
            continue
        best = int(np.argmax(2 * found / (np.arange(1, len(found) + 1) + objects)))
        score, precision = float(matched.score[own[best]]), float(found[best] / (best + 1))
        thresholds.append(BestThreshold(score, precision, float(found[best] / objects)))
    return thresholds
