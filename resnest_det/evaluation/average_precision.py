"""The twelve COCO figures of detections against ground truth, counted fast and equal to pycocotools'."""

import numpy as np
import pycocotools.mask as mask_codec
from faster_coco_eval import COCO, COCOeval_faster

# (name, index of the area range: all, small, medium, large; IoU threshold or None for the mean of all ten)
_PRECISIONS = (("AP", 0, None), ("AP50", 0, 0.5), ("AP75", 0, 0.75), ("APs", 1, None), ("APm", 2, None), ("APl", 3, None))
# (name, index of the area range, index of the limit on detections per image)
_RECALLS = (("AR1", 0, 0), ("AR10", 0, 1), ("AR100", 0, 2), ("ARs", 1, 2), ("ARm", 2, 2), ("ARl", 3, 2))
FIGURES = tuple(name for name, *_ in _PRECISIONS + _RECALLS)


def coco_figures(ground_truth: dict, detections: list[dict], task: str, max_detections: int = 100) -> dict[str, float]:
    """Average precision and recall by the COCO definition (Lin et al., arXiv:1405.0312; cocodataset.org/#detection-eval).

    Args:
        ground_truth: content of a COCO instance file; every annotation has `id`, `image_id`, `category_id`, `bbox` (XYWH,
            pixels), `area`, `iscrowd` and, for `segm`, a run-length encoded `segmentation`. Not changed.
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
    """Precision (10 IoU, 101 recalls, K categories, 4 areas, 3 limits) and recall (10, K, 4, 3), -1 without ground truth.

    faster-coco-eval counts. It divides by TP + FP where pycocotools divides by TP + FP + 2.2e-16, which gives another
    number in one place only: precision 1 reached by the first true positive alone. Whether a second one followed before
    any false positive shows in the precision at a recall between 1 and 2 of the number of objects, so such recalls
    are asked for beside the usual 101 and the number of pycocotools is put where it belongs.
    """
    truth = COCO({**ground_truth, "annotations": [dict(annotation) for annotation in ground_truth["annotations"]]})
    found = COCO(
        {
            "images": ground_truth["images"],
            "categories": ground_truth["categories"],
            "annotations": [_as_annotation(d, i + 1, task) for i, d in enumerate(detections)],
        }
    )
    counting = COCOeval_faster(truth, found, task)
    params = counting.params
    params.maxDets = [1, 10, max(10, max_detections)]

    objects = _objects_per_category_and_area(ground_truth["annotations"], params.catIds, params.areaRng)
    between_first_and_second = 1.5 / np.maximum(objects, 1)
    extra, where = np.unique(between_first_and_second, return_inverse=True)
    recalls = len(params.recThrs)
    params.recThrs = np.concatenate([params.recThrs, extra])

    counting.evaluate()
    counting.accumulate()
    precision = counting.eval["precision"][:, :recalls].copy()
    at_extra = counting.eval["precision"][:, recalls:]
    for category, area in np.ndindex(objects.shape):
        values = precision[:, :, category, area]
        second = at_extra[:, where.reshape(objects.shape)[category, area], category, area]
        values[(values == 1) & (second[:, None] != 1)] = 1 / (1 + np.spacing(1))
    return precision, counting.eval["recall"]


def _as_annotation(detection: dict, identity: int, task: str) -> dict:
    if task == "bbox":
        shape = {"bbox": detection["bbox"], "area": detection["bbox"][2] * detection["bbox"][3]}
    else:
        shape = {
            "segmentation": detection["segmentation"],
            "area": float(mask_codec.area(detection["segmentation"])),
            "bbox": detection["bbox"],
        }
    return {
        "id": identity,
        "image_id": detection["image_id"],
        "category_id": detection["category_id"],
        "score": detection["score"],
        "iscrowd": 0,
        **shape,
    }


def _objects_per_category_and_area(annotations: list[dict], category_ids: list[int], area_ranges) -> np.ndarray:
    """Number of objects that are not crowds, (K, areas)."""
    objects = [a for a in annotations if not a["iscrowd"]]
    categories = np.array([a["category_id"] for a in objects], dtype=np.int64)
    areas = np.array([a["area"] for a in objects], dtype=np.float64)
    inside = np.stack([(areas >= low) & (areas <= high) for low, high in area_ranges], axis=1)
    return np.stack([inside[categories == category].sum(axis=0) for category in category_ids])
