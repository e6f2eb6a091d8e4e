"""The twelve COCO figures of detections against ground truth: hotcoco counts, equal to pycocotools to the last bit."""

import math
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter

import hotcoco
import numpy as np

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_figures(ground_truth: dict, detections: list[dict], task: str, max_detections: int = 100) -> dict[str, float]:
    """`figures_of_tasks` of one task."""
    return figures_of_tasks(ground_truth, detections, (task,), max_detections)[task]


def figures_of_tasks(
    ground_truth: dict, detections: list[dict], tasks: Sequence[str], max_detections: int = 100
) -> dict[str, dict[str, float]]:
    """Average precision and recall by the COCO definition (Lin et al., arXiv:1405.0312; cocodataset.org/#detection-eval).

    Args:
        ground_truth: content of a COCO instance file; every annotation has `image_id`, `category_id`, `bbox` (XYWH,
            pixels), `area`, `iscrowd` and, for `segm`, a `segmentation` of polygons or run lengths. Not changed. Ids may be any
            numbers; those of annotations do not matter.
        detections: COCO results: `image_id`, `category_id`, `score`, `bbox` (XYWH) and, for `segm`, a run-length encoded
            `segmentation`. Not changed. Detections of equal score count in the order given.
        tasks: any of "bbox" and "segm". For "segm" the area of a detection is that of its mask.
        max_detections: how many detections of one image and category count, best first; at least 10. AR100 keeps its name
            whatever this is.

    Returns:
        for each task the names in `FIGURES` and `AP-<category>` for each category, in percent; nan where there is no truth.
    """
    countings = counted(ground_truth, detections, tasks, max_detections)
    return {task: figures_of(counting, ground_truth) for task, counting in countings.items()}


def figures_of(counting: hotcoco.COCOeval, ground_truth: dict) -> dict[str, float]:
    """The figures of a task that `counted` has counted, see `figures_of_tasks`."""
    counting.summary_lines()
    means = counting.get_results(per_class=True)
    figures = {name: _percent(means[name]) for name in FIGURES}
    for number, category in enumerate(sorted(ground_truth["categories"], key=itemgetter("id")), start=1):
        figures[f"AP-{category['name']}"] = _percent(means.get(f"AP/{number}", -1))
    return figures


def _percent(mean: float) -> float:
    return 100 * mean if mean > -1 else math.nan


def counted(ground_truth: dict, detections: list[dict], tasks: Sequence[str], max_detections: int) -> dict[str, hotcoco.COCOeval]:
    """hotcoco's evaluation of each task after `accumulate`; its `eval` has the arrays that pycocotools' has.

    In it images, categories, annotations of these images and detections are numbered from 1: the first two in the order of their
    ids, the others as they are given. Names of categories are these numbers.
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
    with_masks = "segm" in tasks
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        np.array([image_numbers[each["image_id"]] for each in objects], dtype=np.int64),
        np.array([category_numbers[each["category_id"]] for each in objects], dtype=np.int64),
        _boxes(objects),
        area=np.array([each["area"] for each in objects], dtype=np.float64),
        iscrowd=np.array([each["iscrowd"] for each in objects], dtype=np.int64),
        segmentation=[each["segmentation"] for each in objects] if with_masks else None,
    )
    rows = np.empty((len(detections), 7))
    rows[:, 0] = [image_numbers[each["image_id"]] for each in detections]
    rows[:, 1:5] = _boxes(detections)
    rows[:, 5] = [each["score"] for each in detections]
    rows[:, 6] = [category_numbers[each["category_id"]] for each in detections]
    masks = [each["segmentation"] for each in detections] if with_masks else None
    found = truth.load_res(rows, segmentation=masks)

    results = {}
    # Boxes first: detections have the areas of their boxes until they are given those of their masks.
    for task in sorted(tasks):
        if task == "segm" and masks:
            found.update_anns(ids=np.arange(1, len(masks) + 1), area=hotcoco.mask.area(masks).astype(np.float64))
        counting = hotcoco.COCOeval(truth, found, task)
        counting.params.max_dets = [1, 10, max(10, max_detections)]
        counting.evaluate()
        counting.accumulate()
        results[task] = counting
    return {task: results[task] for task in tasks}


def _numbers(entries: list[dict]) -> dict[int, int]:
    """Ids to 1, 2, ... in ascending order."""
    return {each: number for number, each in enumerate(sorted({entry["id"] for entry in entries}), start=1)}


def _boxes(entries: list[dict]) -> np.ndarray:
    numbers = chain.from_iterable(map(itemgetter("bbox"), entries))
    return np.fromiter(numbers, dtype=np.float64, count=4 * len(entries)).reshape(-1, 4)
