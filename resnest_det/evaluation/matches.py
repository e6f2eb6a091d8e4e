"""Which objects a detector has missed, and which of its detections are false."""

from dataclasses import dataclass

import numpy as np

from resnest_det.evaluation.average_precision import counted

# A detection of the right class matches an object that it overlaps this much (intersection over union).
OVERLAP = 0.5


@dataclass(frozen=True)
class Matches:
    """(N,) bool of each object whether it was `missed`, and (M,) bool of each detection whether it is `false`.

    Neither is a region of a crowd, nor a detection in one.
    """

    missed: np.ndarray
    false: np.ndarray

    @property
    def errors(self) -> int:
        """How many objects are missed and detections false."""
        return int(self.missed.sum() + self.false.sum())


def match(ground_truth: dict, detections: list[dict], task: str = "bbox") -> Matches:
    """Match detections with objects by COCO's rules: the best first, each with the one of its class that it overlaps most.

    Args:
        ground_truth, detections, task: see `resnest_det.evaluation.average_precision.coco_figures`; every annotation is of an
            image in the list.
    """
    missed, false = (np.zeros(len(each), dtype=bool) for each in (ground_truth["annotations"], detections))
    counting = counted(ground_truth, detections, (task,), max_detections=len(detections))[task]
    said = counting.image_diagnostics(iou_thr=OVERLAP)
    missed[[number - 1 for number, status in said["gt_status"].items() if status == "fn"]] = True
    false[[number - 1 for number, status in said["dt_status"].items() if status == "fp"]] = True
    return Matches(missed, false)
