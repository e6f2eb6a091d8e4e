"""The second stage: choose regions to learn from, and run the box and mask heads on regions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnest_det.detector.box_head import BoxPredictor, FastRCNNConvFCHead
from resnest_det.detector.mask_head import MaskRCNNConvUpsampleHead, mask_loss, mask_targets
from resnest_det.detector.matching import match_boxes, subsample
from resnest_det.detector.pooler import RegionPooler


class Regions(NamedTuple):
    """Labelled regions of one image.

    `boxes` (R, 4); `labels` (R,) int64 classes, K for background; `true_boxes` (R, 4) and `objects` (R,) int64, the matched
    object's box and index, of no meaning for background; `num_foreground`, how many of those drawn to learn from are objects,
    which come first.
    """

    boxes: Tensor
    labels: Tensor
    true_boxes: Tensor
    objects: Tensor
    num_foreground: int = 0


class RegionSampler:
    """Labels proposals by the object that they overlap and draws those that train the heads (Fast R-CNN, section 2.3).

    Args:
        num_classes: K; the label of background.
        iou_thresholds, iou_labels: see `match_boxes`.
        batch_size_per_image: regions an image, at most `positive_fraction` of them objects.
        append_objects: whether the true boxes are proposals too, so that a network that proposes nothing useful yet learns.
    """

    def __init__(
        self,
        num_classes: int,
        iou_thresholds: Sequence[float] = (0.5,),
        iou_labels: Sequence[int] = (0, 1),
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        append_objects: bool = True,
    ):
        self.num_classes = num_classes
        self.iou_thresholds = tuple(iou_thresholds)
        self.iou_labels = tuple(iou_labels)
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.append_objects = append_objects

    @torch.no_grad()
    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[dict]) -> list[Regions]:
        """Regions from the `proposals` (P, 4) of each image, whose target has `boxes`, `labels` and `generator`."""
        if self.append_objects:
            proposals = [torch.cat((boxes, target["boxes"])) for boxes, target in zip(proposals, targets)]
        labelled = [
            label_regions(boxes, target, self.iou_thresholds, self.iou_labels, self.num_classes)
            for boxes, target in zip(proposals, targets)
        ]
        drawn = subsample(
            [image.labels for image in labelled],
            self.batch_size_per_image,
            self.positive_fraction,
            self.num_classes,
            [target["generator"] for target in targets],
        )
        regions = []
        for image, (positive, negative) in zip(labelled, drawn):
            chosen = torch.cat((positive, negative))
            regions.append(Regions(*(values[chosen] for values in image[:-1]), num_foreground=len(positive)))
        return regions


def label_regions(
    boxes: Tensor, target: dict, iou_thresholds: Sequence[float], iou_labels: Sequence[int], num_classes: int
) -> Regions:
    """All of `boxes` (R, 4) with the class of the object each overlaps most; -1 where the overlap is neither high nor low."""
    objects, overlap = match_boxes(target["boxes"], boxes, iou_thresholds, iou_labels, allow_low_quality=False)
    if not len(target["labels"]):
        return Regions(boxes, torch.full_like(objects, num_classes), boxes, objects)
    labels = target["labels"][objects].masked_fill_(overlap == 0, num_classes).masked_fill_(overlap == -1, -1)
    return Regions(boxes, labels, target["boxes"][objects], objects)


class StandardROIHeads(nn.Module):
    """Box head and, where there is one, mask head, each with its own pooled features (Detectron2's StandardROIHeads).

    Args:
        in_features: names of the pyramid levels to pool from.
        sampler: chooses the regions to learn from.
        box_pooler, box_head, box_predictor: the box branch.
        mask_pooler, mask_head: the mask branch, or None.
        train_on_predicted_boxes: the mask head learns in the boxes that the box head predicts, not in the proposals.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampler: RegionSampler,
        box_pooler: RegionPooler,
        box_head: FastRCNNConvFCHead | nn.ModuleList,
        box_predictor: BoxPredictor | nn.ModuleList,
        mask_pooler: RegionPooler | None = None,
        mask_head: MaskRCNNConvUpsampleHead | None = None,
        train_on_predicted_boxes: bool = False,
    ):
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler = sampler
        self.num_classes = sampler.num_classes
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.train_on_predicted_boxes = train_on_predicted_boxes

    @property
    def final_predictor(self) -> BoxPredictor:
        """The predictor whose boxes are detections."""
        return self.box_predictor

    def losses(self, features: dict[str, Tensor], proposals: Sequence[Tensor], targets: Sequence[dict]) -> dict[str, Tensor]:
        """`loss_cls`, `loss_box_reg` and, with a mask head, `loss_mask`.

        Args:
            features: pyramid maps by name.
            proposals: (P, 4) boxes of each image.
            targets: for each image `boxes` (M, 4), `labels` (M,), `masks` (see `crop_masks`; only with a mask head) and
                `generator` (or None) for sampling.
        """
        maps = [features[name] for name in self.in_features]
        losses, regions = self.box_losses(maps, self.sampler(proposals, targets), targets)
        if self.mask_head is not None:
            losses["loss_mask"] = self.mask_loss(maps, regions, targets)
        return losses

    def box_losses(
        self, maps: Sequence[Tensor], regions: list[Regions], targets: Sequence[dict]
    ) -> tuple[dict[str, Tensor], list[Regions]]:
        """Losses of the box branch, and the regions that the mask head is to learn in."""
        boxes = torch.cat([r.boxes for r in regions])  # (R, 4) over all images
        labels = torch.cat([r.labels for r in regions])  # (R,)
        logits, deltas = self.box_predictor(self.box_head(self.box_pooler(maps, [r.boxes for r in regions])))
        losses = self.box_predictor.losses(logits, deltas, boxes, labels, torch.cat([r.true_boxes for r in regions]))
        if self.train_on_predicted_boxes:
            with torch.no_grad():
                predicted = self.box_predictor.boxes_of_classes(deltas, boxes, labels.clamp(max=self.num_classes - 1))
            predicted = predicted.split([len(r.boxes) for r in regions])
            regions = [r._replace(boxes=image_boxes) for r, image_boxes in zip(regions, predicted)]
        return losses, regions

    def mask_loss(self, maps: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[dict]) -> Tensor:
        """Loss of the mask head over the regions that are objects."""
        boxes = [r.boxes[: r.num_foreground] for r in regions]
        objects = [r.objects[: r.num_foreground] for r in regions]
        labels = torch.cat([r.labels[: r.num_foreground] for r in regions])
        logits = self.mask_head(self.mask_pooler(maps, boxes), labels)  # (F, M, M) over all images
        return mask_loss(logits, mask_targets([target["masks"] for target in targets], objects, boxes, logits.shape[-1]))

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """Detections of each image, see `BoxPredictor.detect`, with a mask head also `mask_probabilities` (D, M, M) in them."""
        maps = [features[name] for name in self.in_features]
        detections = self.detect_boxes(maps, proposals, image_sizes)
        if self.mask_head is not None:
            self.add_masks(features, detections)
        return detections

    def detect_boxes(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """Detections without masks."""
        logits, deltas = self.box_predictor(self.box_head(self.box_pooler(maps, proposals)))
        return self.box_predictor.detect(self.box_predictor.scores(logits), deltas, proposals, image_sizes)

    def add_masks(self, features: dict[str, Tensor], detections: Sequence[dict]) -> None:
        """Put `mask_probabilities` (D, M, M) into detections that have `boxes` in input pixels and `classes`."""
        maps = [features[name] for name in self.in_features]
        boxes = [detection["boxes"] for detection in detections]
        logits = self.mask_head(self.mask_pooler(maps, boxes), torch.cat([detection["classes"] for detection in detections]))
        for detection, probabilities in zip(detections, logits.sigmoid().split([len(b) for b in boxes])):
            detection["mask_probabilities"] = probabilities
