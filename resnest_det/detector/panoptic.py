"""Panoptic FPN (arXiv:1901.02446): instance and semantic branch on one pyramid, and the fusion of what they give."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resnest_det.detector.pixel_loss import rescale_logits
from resnest_det.detector.rcnn import GeneralizedRCNN
from resnest_det.detector.semantic_head import SemSegFPNHead


class FusionLimits(NamedTuple):
    """When the fusion leaves out what a branch gives.

    Attributes:
        overlap: an instance of which more than this fraction is taken already.
        stuff_area: stuff of fewer pixels than this.
        score: an instance with a lower score.
    """

    overlap: float = 0.5
    stuff_area: int = 4096
    score: float = 0.5


DEFAULT_LIMITS = FusionLimits()


class PanopticFPN(GeneralizedRCNN):
    """An R-CNN with a mask head, and a semantic head beside it.

    Args:
        sem_seg_head: labels pixels; its class 0 stands for all things together.
        instance_loss_weight: factor of the losses of boxes and masks of the heads on regions. Classification losses are not
            scaled; this follows Detectron2's code, not its documentation.
        fusion: limits of the fusion, see `fuse`; None leaves the two branches' results apart.
        others: see `GeneralizedRCNN`.

    The `target` of a training sample also has `sem_seg`, (H, W) integer classes of the pixels of `image`, the semantic head's
    `ignore_value` where there is no label. The losses include `loss_sem_seg`; the results of an image include `sem_seg`,
    (C, height, width) float32 logits, and `panoptic_seg`, see `fuse`, both at the size of the image itself.
    """

    def __init__(
        self,
        *,
        sem_seg_head: SemSegFPNHead,
        instance_loss_weight: float = 1.0,
        fusion: FusionLimits | None = DEFAULT_LIMITS,
        **others,
    ):
        super().__init__(**others)
        self.sem_seg_head = sem_seg_head
        self.instance_loss_weight = instance_loss_weight
        self.fusion = fusion

    def losses(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], batch: Sequence[dict]
    ) -> dict[str, Tensor]:
        """Losses of both branches; see `ImageModel.losses`."""
        labels = self.semantic_targets(batch, self.sem_seg_head.ignore_value)
        losses = self.sem_seg_head.losses(self.sem_seg_head(features), labels)
        for name, loss in super().losses(features, image_sizes, batch).items():
            weighted = name in ("loss_mask",) or name.startswith("loss_box_reg")
            losses[name] = self.instance_loss_weight * loss if weighted else loss
        return losses

    def results(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """Detections, logits of the pixels and the panoptic map; see `ImageModel.results`."""
        results = super().results(features, image_sizes, output_sizes)
        for result, *image in zip(results, self.sem_seg_head(features), image_sizes, output_sizes):
            result["sem_seg"] = rescale_logits(*image)
            if self.fusion is not None:
                result["panoptic_seg"] = fuse(result, result["sem_seg"].argmax(dim=0), self.fusion)
        return results


def fuse(detections: dict[str, Tensor], labels: Tensor, limits: FusionLimits) -> tuple[Tensor, list[dict]]:
    """One panoptic map from detections and pixel labels (section 3.1 of arXiv:1901.02446).

    Instances are placed from the best score down, each where no better one lies, unless too much of it lies under those; stuff
    fills what they leave. Pixels may remain that belong to nothing.

    Args:
        detections: `scores` (D,), `classes` (D,) and `masks` (D, H, W) bool of one image.
        labels: (H, W) int64, 0 for things.
    Returns:
        (H, W) int32 map of segment ids, 0 where there is none, and a dict for each segment: `id`; `isthing`; `category_id`, the
        contiguous class among things or, counted from 1, among stuff; for a thing its `score` and `instance_id`, the index of
        the detection; for stuff its `area` in pixels.
    """
    panoptic = torch.zeros_like(labels, dtype=torch.int32)
    segments: list[dict] = []

    order = torch.argsort(detections["scores"], descending=True, stable=True)
    # In one copy, as everything here that the host has to know.
    found = torch.stack([values[order].float() for values in (detections["scores"], detections["classes"])])
    candidates = [each for each in zip(order.tolist(), *found.tolist()) if each[1] >= limits.score]
    placed, count = [], torch.zeros((), dtype=torch.int32, device=labels.device)
    for instance, _, _ in candidates:
        mask = detections["masks"][instance]
        free = mask & (panoptic == 0)
        area, free_area = mask.sum(), free.sum()
        fits = (free_area > 0) & ((area - free_area).double() / area.double() <= limits.overlap)
        count = count + fits
        panoptic.masked_fill_(free & fits, count)
        placed.append(fits)
    for (instance, score, label), fits in zip(candidates, torch.stack(placed).tolist() if placed else []):
        if fits:
            segments.append(
                {"id": len(segments) + 1, "isthing": True, "score": score, "category_id": int(label), "instance_id": instance}
            )

    left = labels.masked_fill(panoptic != 0, 0)
    for label, area in torch.stack(torch.unique(left, return_counts=True), dim=1).tolist():
        if label == 0 or area < limits.stuff_area:
            continue
        segments.append({"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area})
        panoptic.masked_fill_(left == label, len(segments))
    return panoptic, segments
