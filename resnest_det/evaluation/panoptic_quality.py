"""Panoptic quality of PNG and JSON files in COCO's panoptic format.

Definition: Kirillov et al., Panoptic Segmentation (arXiv:1801.00868), section 4.1: a predicted and a true segment of one class
match where their IoU is over 0.5; PQ = sum of IoU / (TP + FP / 2 + FN / 2) = SQ * RQ. Void and crowd regions are treated as the
panoptic API of COCO (github.com/cocodataset/panopticapi) treats them.
"""

import math
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from resnest_det.data.coco import read_json
from resnest_det.data.panoptic_png import MAX_SEGMENT_ID, read_segment_ids
from resnest_det.errors import UserError

_ID_BITS = 24
# Below this many images, starting processes takes longer than counting.
_IMAGES_WORTH_PROCESSES = 64


@dataclass
class Counts:
    """For one class: the sum of the IoUs of matched segments, true positives, false positives, false negatives."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def quality(self) -> dict[str, float]:
        """`pq`, `sq` and `rq` as fractions; nan where the class occurs neither in the truth nor in the prediction."""
        total = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if total == 0:
            return {"pq": math.nan, "sq": math.nan, "rq": math.nan}
        return {"pq": self.iou / total, "sq": self.iou / self.tp if self.tp else 0.0, "rq": self.tp / total}


@dataclass
class ImageCounts:
    """For one image: (category id, IoU) of each match, and the category ids of false positives and false negatives."""

    matches: list[tuple[int, float]] = field(default_factory=list)
    false_positives: list[int] = field(default_factory=list)
    false_negatives: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PanopticSide:
    """The truth or the prediction: `content` of its file in COCO's panoptic format, the path of that file, and the PNG folder."""

    content: dict
    json_file: str
    folder: str


def panoptic_quality(
    truth_json: str, truth_dir: str, prediction_json: str, prediction_dir: str, processes: int | None = None
) -> dict[str, dict]:
    """`compare` of files in COCO's panoptic format.

    Raises:
        UserError: a file cannot be read, or see `compare`.
    """
    truth = PanopticSide(read_json(truth_json), truth_json, truth_dir)
    return compare(truth, PanopticSide(read_json(prediction_json), prediction_json, prediction_dir), processes)


def compare(truth: PanopticSide, prediction: PanopticSide, processes: int | None = None) -> dict[str, dict]:
    """Panoptic, segmentation and recognition quality of all images of the truth, whose categories are those of both.

    Args:
        processes: how many share the work; None takes one for each CPU. The result does not depend on it.

    Returns:
        "All", "Things" and "Stuff", each {"pq", "sq", "rq": means over the classes that occur, as fractions, nan if none does;
        "n": number of those classes}, and "per_class": category id to {"pq", "sq", "rq"}. Sums run over images and segments in
        the order of the truth, so the numbers are those of the panoptic API in one process to the last digit.

    Raises:
        UserError: a PNG file is missing or damaged, PNG and JSON disagree, a size, category or id is wrong, an image has no
            prediction or two; the message names the file and the segment.
    """
    for side in (truth, prediction):
        _check_panoptic(side.content, side.json_file)
    categories = {category["id"]: category for category in truth.content.get("categories") or ()}
    if not categories:
        raise UserError(f"{truth.json_file} has no categories")
    jobs = _pair_images(truth.content, truth.json_file, prediction.content, prediction.json_file)
    files = (truth.json_file, truth.folder, prediction.json_file, prediction.folder)
    count = partial(_count_files, files=files, categories=frozenset(categories))

    processes = processes or _available_cpus()
    if processes == 1 or len(jobs) < _IMAGES_WORTH_PROCESSES:
        return _summarize(map(count, jobs), categories)
    with ProcessPoolExecutor(processes) as pool:
        return _summarize(pool.map(count, jobs, chunksize=min(32, len(jobs) // processes)), categories)


def count_segments(
    overlaps: tuple[np.ndarray, np.ndarray, np.ndarray], truth_segments: dict[int, dict], predicted_segments: dict[int, dict]
) -> ImageCounts:
    """Match the segments of one image.

    Args:
        overlaps: see `find_overlaps`.
        truth_segments: id to {"category_id", "iscrowd" (absent means 0), "area" (absent means counted)}, in the order of the
            file, for exactly the ids of the map other than 0. Like the panoptic API, takes the area that the file gives.
        predicted_segments: id to {"category_id"}, likewise; areas are counted.
    """
    pair_truth, pair_predicted, pixels = overlaps
    areas_true = _sum_by_id(pair_truth, pixels)
    areas_true.update({true_id: segment["area"] for true_id, segment in truth_segments.items() if "area" in segment})
    areas_predicted = _sum_by_id(pair_predicted, pixels)
    in_void = dict(zip(pair_predicted[pair_truth == 0].tolist(), pixels[pair_truth == 0].tolist()))

    counts = ImageCounts()
    matched_true, matched_predicted = set(), set()
    overlap = {}
    for true_id, predicted_id, shared in zip(pair_truth.tolist(), pair_predicted.tolist(), pixels.tolist()):
        if true_id == 0 or predicted_id == 0:
            continue
        segment = truth_segments[true_id]
        if segment["category_id"] != predicted_segments[predicted_id]["category_id"]:
            continue
        if segment.get("iscrowd", 0):
            overlap[true_id, predicted_id] = shared
            continue
        union = areas_predicted[predicted_id] + areas_true[true_id] - shared - in_void.get(predicted_id, 0)
        if shared / union > 0.5:
            counts.matches.append((segment["category_id"], shared / union))
            matched_true.add(true_id)
            matched_predicted.add(predicted_id)

    # Of several crowds of one class, the API considers only the last.
    crowd_of_category = {}
    for true_id, segment in truth_segments.items():
        if segment.get("iscrowd", 0):
            crowd_of_category[segment["category_id"]] = true_id
        elif true_id not in matched_true:
            counts.false_negatives.append(segment["category_id"])

    for predicted_id, segment in predicted_segments.items():
        if predicted_id in matched_predicted:
            continue
        crowd = crowd_of_category.get(segment["category_id"])
        ignored = in_void.get(predicted_id, 0) + overlap.get((crowd, predicted_id), 0)
        if ignored / areas_predicted[predicted_id] <= 0.5:
            counts.false_positives.append(segment["category_id"])
    return counts


def find_overlaps(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of ids that share pixels, in ascending order of (true, predicted), and how many they share, each (P,) int64.

    Args:
        truth, prediction: (H, W) uint32 segment ids, 0 is void.
    """
    truth, prediction = truth.reshape(-1), prediction.reshape(-1)
    # Segments are made of runs along rows; a few thousand runs sort much faster than a third of a million pixels.
    starts = np.flatnonzero((truth[1:] != truth[:-1]) | (prediction[1:] != prediction[:-1])) + 1
    starts = np.concatenate([[0], starts])
    lengths = np.diff(starts, append=truth.size)
    pairs = (truth[starts].astype(np.int64) << _ID_BITS) | prediction[starts].astype(np.int64)
    pairs, where = np.unique(pairs, return_inverse=True)
    pixels = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(pixels, where, lengths)
    return pairs >> _ID_BITS, pairs & MAX_SEGMENT_ID, pixels


def _sum_by_id(ids: np.ndarray, pixels: np.ndarray) -> dict[int, int]:
    unique, where = np.unique(ids, return_inverse=True)
    areas = np.zeros(len(unique), dtype=np.int64)
    np.add.at(areas, where, pixels)
    return dict(zip(unique.tolist(), areas.tolist()))


def _count_files(
    job: tuple[dict, dict, tuple[int, int] | None], files: tuple[str, str, str, str], categories: frozenset[int]
) -> ImageCounts:
    true_annotation, predicted_annotation, size = job
    truth_json, truth_dir, prediction_json, prediction_dir = files
    sides = ((true_annotation, truth_dir, truth_json), (predicted_annotation, prediction_dir, prediction_json))
    maps = []
    for annotation, folder, _ in sides:
        path = os.path.join(folder, annotation["file_name"])
        ids = read_segment_ids(path)
        if size is not None and ids.shape != size:
            raise UserError(
                f"{path} is {ids.shape[1]} x {ids.shape[0]} pixels (width x height), "
                f"but image {annotation['image_id']} is {size[1]} x {size[0]}"
            )
        size = ids.shape
        maps.append(ids)
    overlaps = find_overlaps(*maps)
    segments = [
        _segments_by_id(annotation, drawn, folder, json_file, categories)
        for (annotation, folder, json_file), drawn in zip(sides, overlaps)
    ]
    return count_segments(overlaps, *segments)


def _segments_by_id(
    annotation: dict, drawn: np.ndarray, folder: str, json_file: str, categories: frozenset[int]
) -> dict[int, dict]:
    """The segments of an annotation by id, checked against the ids `drawn` in its PNG."""
    image, path = f"image {annotation['image_id']}", os.path.join(folder, annotation["file_name"])
    segments = {}
    for segment in annotation["segments_info"]:
        segment_id = segment["id"]
        where = f"{json_file}: {image}, segment {segment_id}"
        if not (isinstance(segment_id, int) and 0 < segment_id <= MAX_SEGMENT_ID):
            raise UserError(f"{where}: a segment id must be a whole number between 1 and {MAX_SEGMENT_ID}")
        if segment_id in segments:
            raise UserError(f"{where} is listed twice, so segments overlap")
        if segment["category_id"] not in categories:
            raise UserError(f"{where} has category {segment['category_id']}, which is not among the categories of the truth")
        segments[segment_id] = segment
    ids = set(drawn.tolist()) - {0}
    if ids - segments.keys():
        raise UserError(f"{path} has pixels of segment {min(ids - segments.keys())}, which {json_file} does not list for {image}")
    if segments.keys() - ids:
        raise UserError(f"{json_file}: {image}, segment {min(segments.keys() - ids)} has no pixel in {path}")
    return segments


def _check_panoptic(content: dict, path: str) -> None:
    if not isinstance(content.get("annotations"), list):
        raise UserError(f'{path} is not a COCO panoptic file: it has no list "annotations"')
    for annotation in content["annotations"]:
        missing = {"image_id", "file_name", "segments_info"} - set(annotation)
        if missing:
            raise UserError(f"{path}: the annotation of image {annotation.get('image_id')} has no {min(missing)}")
        for segment in annotation["segments_info"]:
            missing = {"id", "category_id"} - set(segment)
            if missing:
                raise UserError(f"{path}: image {annotation['image_id']}, segment {segment.get('id')} has no {min(missing)}")


def _pair_images(truth: dict, truth_json: str, prediction: dict, prediction_json: str) -> list[tuple]:
    """(true annotation, predicted annotation, (height, width) or None) of each image, in the order of the truth."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.get("images", ()) if "height" in image}
    by_image = {}
    for annotations, path in ((truth["annotations"], truth_json), (prediction["annotations"], prediction_json)):
        images = {annotation["image_id"]: annotation for annotation in annotations}
        if len(images) < len(annotations):
            seen: set = set()
            twice = next(a["image_id"] for a in annotations if a["image_id"] in seen or seen.add(a["image_id"]))
            raise UserError(f"{path} has two annotations of image {twice}")
        by_image[path] = images
    true, predicted = by_image[truth_json], by_image[prediction_json]
    if true.keys() - predicted.keys():
        raise UserError(f"{prediction_json} has no prediction for image {min(true.keys() - predicted.keys())}")
    if predicted.keys() - true.keys():
        raise UserError(f"{prediction_json} has image {min(predicted.keys() - true.keys())}, which {truth_json} lacks")
    return [(annotation, predicted[image_id], sizes.get(image_id)) for image_id, annotation in true.items()]


def _summarize(images: Iterable[ImageCounts], categories: dict[int, dict]) -> dict[str, dict]:
    counts = {category_id: Counts() for category_id in categories}
    for image in images:
        for category_id, iou in image.matches:
            counts[category_id].tp += 1
            counts[category_id].iou += iou
        for category_id in image.false_positives:
            counts[category_id].fp += 1
        for category_id in image.false_negatives:
            counts[category_id].fn += 1
    per_class = {category_id: count.quality() for category_id, count in counts.items()}
    things = [category_id for category_id, category in categories.items() if category["isthing"] == 1]
    stuff = [category_id for category_id, category in categories.items() if category["isthing"] != 1]
    return {
        "All": _mean(per_class, categories),
        "Things": _mean(per_class, things),
        "Stuff": _mean(per_class, stuff),
        "per_class": per_class,
    }


def _mean(per_class: dict[int, dict[str, float]], category_ids: Iterable[int]) -> dict[str, float]:
    total, classes = dict.fromkeys(("pq", "sq", "rq"), 0.0), 0
    for quality in (per_class[category_id] for category_id in category_ids):
        if not math.isnan(quality["pq"]):
            classes += 1
            # Added one by one: sum() compensates for rounding, which changes the last digit.
            for name in total:
                total[name] += quality[name]
    return {**{name: value / classes if classes else math.nan for name, value in total.items()}, "n": classes}


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
