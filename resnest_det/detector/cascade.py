"""Cascade R-CNN (arXiv:1712.00726): box heads in a row, each trained on and refining the boxes of the one before."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnest_det.detector.boxes import clip_boxes, image_limits, larger_than
from resnest_det.detector.roi_heads import Regions, StandardROIHeads, label_regions
from resnest_det.errors import ArgumentError


class CascadeROIHeads(StandardROIHeads):
    """`StandardROIHeads` whose box branch has several stages, named `box_head.0`, `box_predictor.0`, ...

    Args:
        box_heads, box_predictors: one for each stage, class-agnostic.
        iou_thresholds: at which overlap a box is an object, one for each stage; the first is for proposals.
        arguments: of `StandardROIHeads`.

    Raises:
        ArgumentError: a predictor is class-specific, or the numbers of stages differ.
    """

    def __init__(
        self, *, box_heads: Sequence[nn.Module], box_predictors: Sequence[nn.Module], iou_thresholds: Sequence[float], **arguments
    ):
        if not all(predictor.class_agnostic for predictor in box_predictors):
            raise ArgumentError("class_agnostic", "False is not supported in a cascade: a stage hands on one box of each region")
        if not len(box_heads) == len(box_predictors) == len(iou_thresholds) > 0:
            counts = f"{len(box_heads)} heads, {len(box_predictors)} predictors"
            raise ArgumentError("iou_thresholds", f"has {len(iou_thresholds)} values for {counts}; each stage needs one of each")
        if iou_thresholds[0] != arguments["sampler"].iou_thresholds[0]:
            raise ArgumentError(
                "iou_thresholds",
                f"starts with {iou_thresholds[0]}, but regions are sampled at {arguments['sampler'].iou_thresholds[0]}; "
                "both are the first stage's",
            )
        super().__init__(box_head=nn.ModuleList(box_heads), box_predictor=nn.ModuleList(box_predictors), **arguments)
        self.iou_thresholds = tuple(iou_thresholds)

    def box_losses(
        self, maps: Sequence[Tensor], regions: list[Regions], targets: Sequence[dict]
    ) -> tuple[dict[str, Tensor], list[Regions]]:
        """`loss_cls_stage0`, `loss_box_reg_stage0`, ...; the mask head learns in the regions of the first stage."""
        losses = {}
        stage_regions = regions
        for stage, predictor in enumerate(self.box_predictor):
            boxes = torch.cat([r.boxes for r in stage_regions])  # (R, 4) over all images
            labels = torch.cat([r.labels for r in stage_regions])  # (R,)
            logits, deltas = self._run_stage(stage, maps, [r.boxes for r in stage_regions])
            true_boxes = torch.cat([r.true_boxes for r in stage_regions])
            for name, loss in predictor.losses(logits, deltas, boxes, labels, true_boxes).items():
                losses[f"{name}_stage{stage}"] = loss
            if stage + 1 < len(self.box_predictor):
                with torch.no_grad():
                    refined = predictor.boxes_of_classes(deltas, boxes, labels).split([len(r.boxes) for r in stage_regions])
                    stage_regions = self._next_regions(refined, targets, self.iou_thresholds[stage + 1])
        return losses, regions

    def _next_regions(self, refined: Sequence[Tensor], targets: Sequence[dict], iou_threshold: float) -> list[Regions]:
        limits = image_limits([target["image_size"] for target in targets], refined[0].device)
        clipped = [clip_boxes(boxes, limit) for boxes, limit in zip(refined, limits)]
        usable = [larger_than(boxes) for boxes in clipped]
        counts = torch.stack([image.sum() for image in usable]).tolist()
        chosen = torch.cat(clipped)[torch.cat(usable).nonzero().squeeze(1)].split(counts)
        return [
            label_regions(boxes, target, (iou_threshold,), (0, 1), self.num_classes) for boxes, target in zip(chosen, targets)
        ]

    def _run_stage(self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features = self.box_pooler(maps, boxes)
        if features.requires_grad:
            # Every stage trains its head as if alone, while the pyramid gets the mean of their gradients.
            features.register_hook(lambda gradient: gradient / len(self.box_predictor))
        return self.box_predictor[stage](self.box_head[stage](features))

    def detect_boxes(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """Detections without masks: boxes of the last stage, scores the mean over stages."""
        boxes = list(proposals)
        limits = image_limits(image_sizes, boxes[0].device)
        counts = [len(image_boxes) for image_boxes in boxes]
        logits, deltas = self._run_stage(0, maps, boxes)  # (R, K + 1) and (R, 4) over all images
        scores = self.box_predictor[0].scores(logits)
        for stage in range(1, len(self.box_predictor)):
            refined = self.box_predictor[stage - 1].boxes_of_classes(deltas, torch.cat(boxes), classes=None).split(counts)
            boxes = [clip_boxes(image_boxes, limit) for image_boxes, limit in zip(refined, limits)]
            logits, deltas = self._run_stage(stage, maps, boxes)
            scores = scores + self.box_predictor[stage].scores(logits)
        scores = scores * (1.0 / len(self.box_predictor))
        return self.final_predictor.detect(scores, deltas, boxes, image_sizes)

    @property
    def final_predictor(self) -> nn.Module:
        """The last stage's."""
        return self.box_predictor[-1]
