"""Panoptic FPN (arXiv:1901.02446): instance and semantic branch on one pyramid, and the fusion of what they give."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resnest_det.detector.image_model import output_sizes
from resnest_det.detector.rcnn import GeneralizedRCNN
from resnest_det.detector.semantic_head import SemSegFPNHead, rescale_logits
from resnest_det.detector.semantic_segmentor import semantic_targets


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


class PanopticFPN(GeneralizedRCNN):
    """An R-CNN with a mask head, and a semantic head beside it.

    Args:
        sem_seg_head: labels pixels; its class 0 stands for all things together.
        instance_loss_weight: factor of the box and mask losses of the heads on regions. Classification losses are not scaled;
            this follows Detectron2's code, not its documentation.
        fusion: limits of the fusion, see `fuse`; None leaves the two branches' results apart.
        others: see `GeneralizedRCNN`.

    The `target` of a training sample also has `sem_seg`, (H, W) integer classes of the pixels of `image`, 255 where there is no
    label. To the losses comes `loss_sem_seg`; to an image's detections come `sem_seg`, (C, height, width) float32 logits, and
    `panoptic_seg`, see `fuse`, both at the size of the image itself.
    """

    def __init__(
        self,
        *,
        sem_seg_head: SemSegFPNHead,
        instance_loss_weight: float = 1.0,
        fusion: FusionLimits | None = FusionLimits(),
        **others,
    ):
        super().__init__(**others)
        self.sem_seg_head = sem_seg_head
        self.instance_loss_weight = instance_loss_weight
        self.fusion = fusion

    def forward(self, batch: Sequence[dict]) -> dict[str, Tensor] | list[dict]:
        if not self.training:
            return self.inference(batch)
        images, image_sizes = self.preprocess(batch)
        targets = self.prepare_targets(batch, image_sizes)
        labels = semantic_targets(self, batch)
        features = self.backbone(images)
        losses = self.sem_seg_head.losses(self.sem_seg_head(features), labels)
        proposals, proposal_losses = self.proposal_generator(features, image_sizes, targets)
        head_losses = self.roi_heads.losses(features, [image.boxes for image in proposals], targets)
        for name, loss in head_losses.items():
            losses[name] = loss if name.startswith("loss_cls") else self.instance_loss_weight * loss
        return losses | proposal_losses

    def inference(self, batch: Sequence[dict]) -> list[dict]:
        """What the model returns in evaluation mode."""
        images, image_sizes = self.preprocess(batch)
        sizes = output_sizes(batch, image_sizes)
        features = self.backbone(images)
        results = self.detect(features, image_sizes, sizes)
        for result, *image in zip(results, self.sem_seg_head(features), image_sizes, sizes):
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

    order = torch.argsort(detections["scores"], descending=True, stable=True).tolist()
    scores, classes = detections["scores"].tolist(), detections["classes"].tolist()
    for instance in order:
        if scores[instance] < limits.score:
            break
        mask = detections["masks"][instance]
        free = mask & (panoptic == 0)
        area, free_area = int(mask.sum()), int(free.sum())
        if free_area == 0 or (area - free_area) / area > limits.overlap:
            continue
        segments.append(
            {
                "id": len(segments) + 1,
                "isthing": True,
                "score": scores[instance],
                "category_id": classes[instance],
                "instance_id": instance,
            }
        )
        panoptic[free] = len(segments)

    for label in torch.unique(labels).tolist():
        mask = (labels == label) & (panoptic == 0)
        area = int(mask.sum())
        if label == 0 or area == 0 or area < limits.stuff_area:
            continue
        segments.append({"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area})
        panoptic[mask] = len(segments)
    return panoptic, segments
