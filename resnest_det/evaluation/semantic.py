"""Semantic segmentation: intersection over union and pixel accuracy."""

from collections.abc import Callable

import numpy as np

from resnest_det.distributed import gather_objects, is_main_process
from resnest_det.errors import UserError

IGNORED = 255


class SemSegEvaluator:
    """Mean and frequency-weighted IoU, mean and pixel accuracy, as Detectron2's SemSegEvaluator defines them.

    Args:
        class_names: names of the classes 0 to C - 1.
        read_truth: gives the true classes of a sample's image, (height, width) integers, 255 where there is no label.
    """

    def __init__(self, class_names: list[str], read_truth: Callable[[dict], np.ndarray]):
        self.class_names = class_names
        self.read_truth = read_truth
        self.reset()

    def reset(self) -> None:
        """Forget everything processed so far."""
        classes = len(self.class_names)
        self.pixels = np.zeros((classes, classes), dtype=np.int64)

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Take the classes predicted for some images.

        Args:
            batch: samples with `image_id`.
            outputs: for each, `sem_seg` (C, height, width) scores.

        Raises:
            UserError: truth and prediction differ in size, or the truth has a class that is not in the list.
        """
        classes = len(self.class_names)
        for sample, output in zip(batch, outputs, strict=True):
            scores = output["sem_seg"]
            if len(scores) != classes:
                raise UserError(f"the model predicts {len(scores)} semantic classes, the data set has {classes} "
                                f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES)")
            predicted = scores.argmax(dim=0).cpu().numpy().astype(np.int64)
            truth = np.asarray(self.read_truth(sample))
            if truth.shape != predicted.shape:
                raise UserError(f"image {sample['image_id']}: semantic truth is {truth.shape} (height, width), "
                                f"the prediction {predicted.shape}")
            labelled = truth != IGNORED
            truth = truth[labelled].astype(np.int64)
            if truth.size and not 0 <= truth.min() <= truth.max() < classes:
                raise UserError(f"image {sample['image_id']}: semantic truth has class {truth.max()}, the data set has {classes}")
            self.pixels += np.bincount(classes * predicted[labelled] + truth, minlength=classes**2).reshape(classes, classes)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Add up the counts of all processes.

        Returns:
            {"sem_seg": figures in percent}: `mIoU`, `fwIoU`, `mACC`, `pACC`, `IoU-<class>` and `ACC-<class>`, nan for classes of
            which the truth has no pixel. None on other processes than the main one.
        """
        gathered = gather_objects(self.pixels)
        if not is_main_process():
            return None
        return {"sem_seg": semantic_figures(sum(gathered), self.class_names)}


def semantic_figures(pixels: np.ndarray, class_names: list[str]) -> dict[str, float]:
    """The figures of `SemSegEvaluator.evaluate` from a (C, C) matrix, [predicted, true], of pixel counts."""
    right, true, predicted = pixels.diagonal(), pixels.sum(axis=0), pixels.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(true > 0, right / true, np.nan)
        iou = np.where(true > 0, right / (true + predicted - right), np.nan)
        present = true > 0
        figures = {"mIoU": iou[present].sum() / present.sum(), "fwIoU": (iou[present] * (true / true.sum())[present]).sum(),
                   "mACC": accuracy[present].sum() / present.sum(), "pACC": right.sum() / true.sum()}
    figures.update({f"IoU-{name}": value for name, value in zip(class_names, iou)})
    figures.update({f"ACC-{name}": value for name, value in zip(class_names, accuracy)})
    return {name: 100 * float(value) for name, value in figures.items()}
