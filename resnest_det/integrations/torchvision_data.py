"""This package's samples as torchvision's detectors take them, and what these find as this package's evaluators take it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnest_det.data.catalog import get_dataset
from resnest_det.data.records import Sample
from resnest_det.detector.postprocess import MASK_THRESHOLD
from resnest_det.integrations.host_evaluation import evaluate_host


def torchvision_batch(samples: Sequence[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, H, W) in 0 ... 1 and their targets, labels from 1 on, of training samples with RGB images and bitmasks."""
    images = [sample["image"] / 255 for sample in samples]
    targets = [dict(sample["target"]) for sample in samples]
    for target in targets:
        target["labels"] = target["labels"] + 1
        if "masks" in target:
            target["masks"] = target["masks"].byte()
    return images, targets


def evaluate_torchvision(detector: nn.Module, dataset_name: str, *, labels_are_category_ids: bool = False) -> dict:
    """AP of one of torchvision's detectors, of boxes and, if it has them, masks.

    Args:
        labels_are_category_ids: as torchvision's reference training leaves them. Otherwise labels count the dataset's categories
            from 1 on, as `to_torchvision` has them.

    Raises:
        UserError: see `get_dataset`; the detector has labels that the dataset has no class for.
    """
    dataset = get_dataset(dataset_name, keep_truth=True)
    class_of = dataset.metadata.thing_dataset_id_to_contiguous_id
    if not labels_are_category_ids:
        class_of = {contiguous + 1: contiguous for contiguous in class_of.values()}
    masks = getattr(getattr(detector, "roi_heads", None), "mask_head", None) is not None
    return evaluate_host(_Predictor(detector, class_of), dataset, ("bbox", "segm") if masks else ("bbox",))


class _Predictor(nn.Module):
    """`detector` as the loop of evaluation calls it; `class_of` has the class of each label."""

    def __init__(self, detector: nn.Module, class_of: dict[int, int]):
        super().__init__()
        self.detector = detector
        self.class_of = class_of

    def forward(self, batch: Sequence[Sample]) -> list[dict[str, Tensor]]:
        device = next(self.detector.parameters()).device
        return [self._found(found) for found in self.detector([sample["image"].to(device) / 255 for sample in batch])]

    def _found(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        # A label without a class stays one that the evaluator names; COCO's gaps are never learned.
        classes = [self.class_of.get(label, -1) for label in found["labels"].tolist()]
        result = {"boxes": found["boxes"], "scores": found["scores"], "classes": torch.tensor(classes, dtype=torch.int64)}
        if "masks" in found:
            result["masks"] = found["masks"][:, 0] >= MASK_THRESHOLD
        return result
