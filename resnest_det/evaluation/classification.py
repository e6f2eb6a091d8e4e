"""Figures of classification: how often the right class is the first, or among the first five, of all images and of each class."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from resnest_det.data.class_samples import LabelledImages
from resnest_det.distributed import gather_objects
from resnest_det.errors import UserError
from resnest_det.files import atomic_write

MOST_CLASSES_IN_FIGURES = 100  # of more, the figures of single classes are in the file alone
TASK = "classification"


class ClassificationEvaluator:
    """Counts what the images of each class were taken for.

    Args:
        classes: names.
        output_dir: for per_class.csv (class, images, right ones, top-1, what they were most often taken for); "" for none.

    Attributes:
        confusion: of the last `evaluate`, on the main process: (K, K) int64, rows are the true classes.
        unreadable: errors about images that are in no figure, of all processes.
    """

    def __init__(self, classes: Sequence[str], output_dir: str | os.PathLike = ""):
        self.classes = list(classes)
        self.output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        """Forget everything processed so far."""
        count = len(self.classes)
        self.confusion = np.zeros((count, count), dtype=np.int64)
        self.among_five = 0
        self.loss = 0.0
        self.unreadable: list[str] = []

    def process(self, batch: LabelledImages, outputs: Tensor) -> None:
        """Take the logits (N, K) of some images."""
        self.unreadable += batch.unreadable
        if not len(batch):
            return
        logits = outputs.float().cpu()
        best = logits.topk(min(5, len(self.classes))).indices
        self.among_five += int((best == batch.labels[:, None]).any(1).sum())
        np.add.at(self.confusion, (batch.labels.numpy(), best[:, 0].numpy()), 1)
        self.loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{"classification": figures} on the main process, None on the others.

        `top1`, `top5` (of more than five classes) and the mean over classes, `top1_mean`, in percent; `loss`; `images` counted
        and `unreadable`; and of up to `MOST_CLASSES_IN_FIGURES` classes `top1-NAME`.

        Raises:
            UserError: not one image could be read, or per_class.csv cannot be written.
        """
        parts = gather_objects((self.confusion, self.among_five, self.loss, self.unreadable))
        if not parts:
            return None
        confusions, fives, losses, unreadable = zip(*parts)
        self.confusion, self.unreadable = sum(confusions), [error for errors in unreadable for error in errors]
        images = int(self.confusion.sum())
        if not images:
            raise UserError(f"no image could be read to evaluate: {self.unreadable[0] if self.unreadable else 'there are none'}")
        of_class, right = self.confusion.sum(1), self.confusion.diagonal()
        shares = 100 * right / np.where(of_class, of_class, np.nan)
        figures = {"top1": 100 * float(right.sum()) / images}
        if len(self.classes) > 5:
            figures["top5"] = 100 * sum(fives) / images
        figures |= {
            "top1_mean": float(np.nanmean(shares)),
            "loss": sum(losses) / images,
            "images": float(images),
            "unreadable": float(len(self.unreadable)),
        }
        if len(self.classes) <= MOST_CLASSES_IN_FIGURES:
            figures |= {f"top1-{name}": float(share) for name, share in zip(self.classes, shares)}
        if self.output_dir:
            self._write(shares)
        return {TASK: figures}

    def _write(self, shares: np.ndarray) -> None:
        path = Path(self.output_dir, "per_class.csv")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, sync=False) as file:
                rows = csv.writer(file)
                rows.writerow(["class", "images", "right", "top1", "most_often_taken_for", "times"])
                for index, name in enumerate(self.classes):
                    row = self.confusion[index]
                    others = np.where(np.arange(len(row)) == index, -1, row)
                    other = int(others.argmax()) if len(row) > 1 and others.max() > 0 else None
                    taken = [self.classes[other], int(row[other])] if other is not None else ["", 0]
                    rows.writerow([name, int(row.sum()), int(row[index]), f"{shares[index]:.2f}", *taken])
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
