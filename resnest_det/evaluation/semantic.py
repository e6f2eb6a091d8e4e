"""Semantic segmentation: intersection over union and pixel accuracy; hotcoco counts the pixels."""

import numpy as np
import torch
from hotcoco.semantic import SemanticEval

from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.distributed import gather_objects, is_main_process
from resnest_det.errors import UserError


class SemSegEvaluator:
    """Mean and frequency-weighted IoU, mean and pixel accuracy, as Detectron2's SemSegEvaluator defines them.

    Args:
        dataset: the truth comes from the label or panoptic PNG files of its `records`; pixels without a label count nowhere.
            `metadata.stuff_classes` names the classes 0 to C - 1; of panoptic datasets 0 stands for all things.
    """

    def __init__(self, dataset):
        self.dataset_name = dataset.name
        self.class_names = dataset.metadata.stuff_classes
        self.records = {record["image_id"]: record for record in dataset.records}
        self.reset()

    def reset(self) -> None:
        """Forget everything processed so far."""
        self.counting = SemanticEval(len(self.class_names), ignore_index=UNLABELLED)

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Take the classes predicted for some images.

        Args:
            batch: samples with `image_id`.
            outputs: for each, `sem_seg` (C, height, width) scores.

        Raises:
            UserError: the model has another number of classes, predicts at another size than that of the truth, or an image
                that is not in the dataset; or see `read_semantic_labels`.
        """
        classes = len(self.class_names)
        for sample, output in zip(batch, outputs, strict=True):
            image_id, scores = sample["image_id"], output["sem_seg"]
            if image_id not in self.records:
                raise UserError(f"{self.dataset_name} has no image {image_id}, but semantic classes were predicted for it")
            if len(scores) != classes:
                raise UserError(f"the model predicts {len(scores)} semantic classes, {self.dataset_name} has {classes}")
            truth = read_semantic_labels(self.records[image_id])
            predicted = scores.argmax(dim=0).to(torch.uint8 if classes <= 256 else torch.int64).cpu().numpy()
            if truth.shape != predicted.shape:
                raise UserError(
                    f"image {image_id} of {self.dataset_name}: the semantic truth is {truth.shape} (height, width), "
                    f"the prediction {predicted.shape}"
                )
            self.counting.update(truth, predicted)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Add up the counts of all processes, and compute the figures.

        Returns:
            {"sem_seg": figures in percent}: `mIoU`, `fwIoU`, `mACC`, `pACC`, `IoU-<class>` and `ACC-<class>`, nan for classes of
            which the truth has no pixel. None on other processes than the main one.
        """
        gathered = gather_objects(self.counting.confusion().astype(np.int64).T)
        if not is_main_process():
            return None
        return {"sem_seg": semantic_figures(sum(gathered), self.class_names)}


def semantic_figures(pixels: np.ndarray, class_names: list[str]) -> dict[str, float]:
    """The figures of `SemSegEvaluator.evaluate` from a (C, C) matrix, [predicted, true], of pixel counts.

    hotcoco's own are others: unlike Detectron2 it takes classes into the means that are predicted but not in the truth.
    """
    right, true, predicted = pixels.diagonal(), pixels.sum(axis=0), pixels.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(true > 0, right / true, np.nan)
        iou = np.where(true > 0, right / (true + predicted - right), np.nan)
        present = true > 0
        figures = {
            "mIoU": iou[present].sum() / present.sum(),
            "fwIoU": (iou[present] * (true / true.sum())[present]).sum(),
            "mACC": accuracy[present].sum() / present.sum(),
            "pACC": right.sum() / true.sum(),
        }
    figures.update({f"IoU-{name}": value for name, value in zip(class_names, iou)})
    figures.update({f"ACC-{name}": value for name, value in zip(class_names, accuracy)})
    return {name: 100 * float(value) for name, value in figures.items()}
