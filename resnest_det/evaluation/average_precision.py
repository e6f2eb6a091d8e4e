"""The twelve COCO figures of detections against ground truth; hotcoco counts, and its arrays are pycocotools' to the last bit."""

from itertools import chain
from operator import itemgetter

import hotcoco
import numpy as np

# (name, index of the area range: all, small, medium, large; IoU threshold or None for the mean of all ten)
_PRECISIONS = (("AP", 0, None), ("AP50", 0, 0.5), ("AP75", 0, 0.75), ("APs", 1, None), ("APm", 2, None), ("APl", 3, None))
# (name, index of the area range, index of the limit on detections per image)
_RECALLS = (("AR1", 0, 0), ("AR10", 0, 1), ("AR100", 0, 2), ("ARs", 1, 2), ("ARm", 2, 2), ("ARl", 3, 2))
FIGURES = tuple(name for name, *_ in _PRECISIONS + _RECALLS)


def coco_figures(ground_truth: dict, detections: list[dict], task: str, max_detections: int = 100) -> dict[str, float]:
    """Average precision and recall by the COCO definition (Lin et al., arXiv:1405.0312; cocodataset.org/#detection-eval).

    Args:
        ground_truth: content of a COCO instance file; every annotation has `image_id`, `category_id`, `bbox` (XYWH,
            pixels), `area`, `iscrowd` and, for `segm`, a `segmentation` of polygons or run lengths. Not changed. Ids may be any
            numbers; those of annotations do not matter.
        detections: COCO results: `image_id`, `category_id`, `score`, `bbox` (XYWH) and, for `segm`, a run-length encoded
            `segmentation`. Not changed. Detections of equal score count in the order given.
        task: "bbox" or "segm". For "segm" the area of a detection is that of its mask.
        max_detections: how many detections of one image and category count, best first; at least 10. AR100 keeps its name
            whatever this is.

    Returns:
        the names in `FIGURES` and `AP-<category>` for each category, in percent; nan where there is no ground truth.
    """
    precision, recall = precision_and_recall(ground_truth, detections, task, max_detections)
    thresholds = np.linspace(0.5, 0.95, 10)
    figures = {}
    for name, area, threshold in _PRECISIONS:
        rows = slice(None) if threshold is None else np.where(thresholds == threshold)[0]
        figures[name] = _mean(precision[rows][:, :, :, area, -1])
    for name, area, limit in _RECALLS:
        figures[name] = _mean(recall[:, :, area, limit])
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    for index, category in enumerate(categories):
        figures[f"AP-{category['name']}"] = _mean(precision[:, :, index, 0, -1])
    return figures


def _mean(values: np.ndarray) -> float:
    present = values[values > -1]
    return 100 * float(np.mean(present)) if present.size else float("nan")


def precision_and_recall(
    ground_truth: dict, detections: list[dict], task: str, max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (10 IoU, 101 recalls, K categories, 4 areas, 3 limits) and recall (10, K, 4, 3), -1 without ground truth."""
    counting = matched(ground_truth, detections, task, max_detections)
    counting.accumulate()
    return counting.eval["precision"], counting.eval["recall"]


def matched(ground_truth: dict, detections: list[dict], task: str, max_detections: int = 100) -> hotcoco.COCOeval:
    """hotcoco's evaluation with every detection matched, from which its figures and diagnoses are computed.

    In it images, categories, annotations of these images and detections are numbered from 1: the first two in the order of their
    ids, the others as they are given.

    Args:
        ground_truth, detections, task, max_detections: see `coco_figures`.
    """
    # Counters keep ids as 64-bit integers or doubles and take 0 for "no match"; numbers from 1, in the order of the ids, which
    # decides between equal scores, are the same to all of them.
    image_numbers = _numbers(ground_truth["images"])
    category_numbers = _numbers(ground_truth["categories"])
    images = [
        {"id": image_numbers[image["id"]], "height": image["height"], "width": image["width"]} for image in ground_truth["images"]
    ]
    categories = [{"id": number, "name": str(number)} for number in category_numbers.values()]
    objects = [annotation for annotation in ground_truth["annotations"] if annotation["image_id"] in image_numbers]
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        np.array([image_numbers[each["image_id"]] for each in objects], dtype=np.int64),
        np.array([category_numbers[each["category_id"]] for each in objects], dtype=np.int64),
        _boxes(objects),
        area=np.array([each["area"] for each in objects], dtype=np.float64),
        iscrowd=np.array([each["iscrowd"] for each in objects], dtype=np.int64),
        segmentation=[each["segmentation"] for each in objects] if task == "segm" else None,
    )
    rows = np.empty((len(detections), 7))
    rows[:, 0] = [image_numbers[each["image_id"]] for each in detections]
    rows[:, 1:5] = _boxes(detections)
    rows[:, 5] = [each["score"] for each in detections]
    rows[:, 6] = [category_numbers[each["category_id"]] for each in detections]
    if task == "segm":
        masks = [each["segmentation"] for each in detections]
        found = truth.load_res(rows, segmentation=masks)
        if masks:
            found.update_anns(ids=np.arange(1, len(masks) + 1), area=hotcoco.mask.area(masks).astype(np.float64))
    else:
        found = truth.load_res(rows)

    counting = hotcoco.COCOeval(truth, found, task)
    counting.params.max_dets = [1, 10, max(10, max_detections)]
    counting.evaluate()
    return counting


def _numbers(entries: list[dict]) -> dict[int, int]:
    """Ids to 1, 2, ... in ascending order."""
    return {each: number for number, each in enumerate(sorted({entry["id"] for entry in entries}), start=1)}


def _boxes(entries: list[dict]) -> np.ndarray:
    numbers = chain.from_iterable(map(itemgetter("bbox"), entries))
    return np.fromiter(numbers, dtype=np.float64, count=4 * len(entries)).reshape(-1, 4)
