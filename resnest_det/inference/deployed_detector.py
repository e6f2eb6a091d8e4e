"""A detector as one function of tensors: the parts of `detector/`, joined without lists of images, so that they can be traced.

All images of a batch have one size. What is chosen among a number that depends on the image (proposals, candidates, detections)
is chosen for all images together, and every row knows its image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.detector.box_head import BoxPredictor
from resnest_det.detector.boxes import clip_boxes, decode_boxes, larger_than
from resnest_det.detector.cascade import CascadeROIHeads
from resnest_det.detector.panoptic import FusionLimits, PanopticFPN
from resnest_det.detector.postprocess import interpolation_weights
from resnest_det.detector.rcnn import GeneralizedRCNN
from resnest_det.detector.roi_heads import StandardROIHeads
from resnest_det.detector.rpn import RPN
from resnest_det.detector.semantic_head import SemSegFPNHead
from resnest_det.detector.semantic_segmentor import SemanticSegmentor
from resnest_det.detector.suppression import suppress_in_plane
from resnest_det.errors import UserError

NOTHING = float("-inf")  # the score of what is no box
_MOST = 2**31  # of anything counted here: tracers want a bound


class DeployedDetector(nn.Module):
    """An R-CNN, a Panoptic FPN or a semantic model from the pixels of its input to results in the pixels of the image itself.

    Args:
        model: float32, on the CPU; put into evaluation mode.

    Attribute `output_names`: of what `forward` gives. D detections of all images, best first image by image, have `boxes` (D, 4)
    float32 XYXY, `scores` (D,), `classes` (D,) int64, `image` (D,) int64, the index of their image, and with a mask head `masks`
    (D, M, M) float32, probabilities inside the box. `labels` (N, height, width) int64 has a class for each pixel. With fusion of
    both `panoptic` (N, height, width) int64 has segment ids, 0 for none; `segments` (D,) int64 is the id of each detection, 0 for
    one that is not shown; `stuff_segments` (N, C) and `stuff_areas` (N, C) int64 are those of each class of pixels.

    Raises:
        UserError: the model is none of these.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not isinstance(model, (GeneralizedRCNN, SemanticSegmentor)):
            raise UserError(f"export takes an R-CNN, a Panoptic FPN or a semantic model, not a {type(model).__name__}")
        self.model = model
        self.finds_objects = isinstance(model, GeneralizedRCNN)
        self.has_masks = self.finds_objects and model.roi_heads.mask_head is not None
        self.labels_pixels = hasattr(model, "sem_seg_head")
        self.fusion = model.fusion if isinstance(model, PanopticFPN) else None
        names = ["boxes", "scores", "classes", "image"] if self.finds_objects else []
        names += ["masks"] if self.has_masks else []
        names += ["labels"] if self.labels_pixels else []
        names += ["panoptic", "segments", "stuff_segments", "stuff_areas"] if self.fusion is not None else []
        self.output_names = tuple(names)
        self.eval()

    def forward(self, images: Tensor, output_size: Tensor) -> tuple[Tensor, ...]:
        """Results of a batch.

        Args:
            images: (N, C, H, W) uint8, in the channel order and at the size that the model was trained for.
            output_size: (2,) int64, the height and width that results are scaled to.
        """
        padded = self.padded(images)
        features = self.model.backbone(padded)
        outputs = self.detections(images, features, output_size) if self.finds_objects else ()
        if self.labels_pixels:
            labels = self.pixel_labels(images, padded.shape[-2:], features, output_size)
            outputs += (labels,)
            if self.fusion is not None:
                outputs += fuse_batch(*outputs, self.model.sem_seg_head.num_classes, self.fusion)
        return outputs

    def padded(self, images: Tensor) -> Tensor:
        """`ImageModel.preprocess` of images of one size."""
        height, width = images.shape[-2:]
        multiple = self.model.size_divisibility
        normalised = (images.float() - self.model.pixel_mean) / self.model.pixel_std
        return F.pad(normalised, (0, -width % multiple, 0, -height % multiple))

    def detections(self, images: Tensor, features: dict[str, Tensor], output_size: Tensor) -> tuple[Tensor, ...]:
        """`GeneralizedRCNN.results`, with masks as the mask head gives them."""
        limits = torch.stack([torch.full((), side, dtype=torch.float32) for side in (images.shape[3], images.shape[2])]).repeat(2)
        heads = self.model.roi_heads
        maps = [features[name] for name in heads.in_features]
        regions = propose(self.model.proposal_generator, features, limits)
        scores, deltas, regions = classify(heads, maps, regions, limits)
        image, boxes, scores, classes = detect(heads.final_predictor, scores, deltas, regions, limits, images.shape[0])
        outer = output_size.flip(0).repeat(2).to(boxes.dtype)
        rescaled = clip_boxes(boxes * (outer / limits), outer)
        keep = larger_than(rescaled).nonzero()[:, 0]
        image, classes = image[keep], classes[keep]
        found = (rescaled[keep], scores[keep], classes, image)
        if not self.has_masks:
            return found
        regions = torch.cat((image[:, None].to(boxes.dtype), boxes[keep]), dim=1)
        return (*found, heads.mask_head(heads.mask_pooler.pool(maps, regions), classes).sigmoid())

    def pixel_labels(self, images: Tensor, padded_size: torch.Size, features: dict[str, Tensor], output_size: Tensor) -> Tensor:
        """(N, height, width) int64 class of each pixel; `enlarge` and `rescale_logits` of all images."""
        head = self.model.sem_seg_head
        logits = head(features)
        if not isinstance(head, SemSegFPNHead):
            logits = F.interpolate(logits, size=padded_size, mode="bilinear", align_corners=head.align_corners)
        # Not by slices: torch.export would take it for granted that there is something to leave away.
        logits = logits.index_select(2, torch.arange(images.shape[2])).index_select(3, torch.arange(images.shape[3]))
        if torch.jit.is_tracing():
            sides = [output_size[0], output_size[1]]
        else:
            sides = output_size.tolist()
            if torch.compiler.is_compiling():
                for side in sides:
                    torch._check(side >= 2)
                    torch._check(side < _MOST)
        return F.interpolate(logits, size=sides, mode="bilinear", align_corners=head.align_corners).argmax(dim=1)


def propose(rpn: RPN, features: dict[str, Tensor], limits: Tensor) -> Tensor:
    """`RPN.forward`: regions (R, 5), each the index of its image and a box, best first image by image."""
    maps = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator([tuple(feature.shape[-2:]) for feature in maps])
    logits, deltas = rpn.rpn_head(maps)
    topk = rpn.pre_nms_topk[1]
    image = torch.arange(logits[0].shape[0])[:, None].expand(-1, topk).flatten()
    boxes, scores = [], []
    for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas):
        # The same number from every level, however small: those that are not there have no score.
        best, top = F.pad(level_logits, (0, topk), value=NOTHING).topk(topk, dim=1)  # (N, K)
        top = torch.minimum(top, torch.full((), level_logits.shape[1] - 1, dtype=top.dtype))
        top_deltas = level_deltas.gather(1, top[:, :, None].expand(-1, -1, 4)).flatten(0, 1)
        decoded = clip_boxes(decode_boxes(top_deltas, level_anchors[top.flatten()], rpn.box_loss.weights), limits)  # (N * K, 4)
        best = best.flatten()
        usable = decoded.isfinite().all(dim=1) & best.isfinite() & larger_than(decoded, rpn.min_box_size)
        decoded = torch.where(usable[:, None], decoded, torch.zeros_like(decoded))
        best = torch.where(usable, best, torch.full_like(best, NOTHING))
        left = suppress_in_plane(decoded, best, torch.zeros_like(image), image, limits, rpn.nms_threshold)
        kept = torch.zeros_like(best).scatter(0, left, torch.ones_like(left, dtype=best.dtype)) > 0
        boxes.append(decoded.reshape(-1, topk, 4))
        scores.append(torch.where(kept, best, torch.full_like(best, NOTHING)).reshape(-1, topk))
    best, order = torch.cat(scores, dim=1).topk(min(rpn.post_nms_topk[1], topk * len(maps)), dim=1)
    image, rank = best.isfinite().nonzero().unbind(1)
    if torch.compiler.is_compiling():
        torch._check(image.shape[0] < _MOST)
    chosen = torch.cat(boxes, dim=1)[image, order[image, rank]]
    return torch.cat((image[:, None].to(chosen.dtype), chosen), dim=1)


def classify(heads: StandardROIHeads, maps: list[Tensor], regions: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (R, K) and deltas of regions, and the regions (R, 5) that the deltas are of: a cascade moves them."""
    if not isinstance(heads, CascadeROIHeads):
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_pooler.pool(maps, regions)))
        return heads.box_predictor.scores(logits), deltas, regions
    stages = list(zip(heads.box_head, heads.box_predictor))
    scores = []
    for stage, (head, predictor) in enumerate(stages):
        if stage:
            boxes = stages[stage - 1][1].boxes_of_classes(deltas, regions[:, 1:], classes=None)
            regions = torch.cat((regions[:, :1], clip_boxes(boxes, limits)), dim=1)
        logits, deltas = predictor(head(heads.box_pooler.pool(maps, regions)))
        scores.append(predictor.scores(logits))
    return sum(scores) * (1.0 / len(stages)), deltas, regions


def detect(
    predictor: BoxPredictor, scores: Tensor, deltas: Tensor, regions: Tensor, limits: Tensor, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`BoxPredictor.detect` of `batch` images: of each detection its image, box, score and class."""
    finite = scores.isfinite().all(dim=1) & deltas.isfinite().all(dim=1)
    region, classes = ((scores > predictor.score_threshold) & finite[:, None]).nonzero().unbind(1)
    if predictor.class_agnostic:
        deltas = deltas[region]
    else:
        deltas = deltas.unflatten(1, (predictor.num_classes, 4))[region, classes]
    scores, image = scores[region, classes], regions[region, 0].long()
    boxes = clip_boxes(decode_boxes(deltas, regions[region, 1:], predictor.box_loss.weights), limits)
    across = math.ceil(predictor.num_classes**0.5)
    rows = image * math.ceil(predictor.num_classes / across) + torch.div(classes, across, rounding_mode="floor")
    left = suppress_in_plane(boxes, scores, classes % across, rows, limits, predictor.nms_threshold)
    image_left = image[left]
    # How many of the same image are better.
    of_image = (image_left[:, None] == torch.arange(batch)).long()
    rank = of_image.cumsum(0).gather(1, image_left[:, None])[:, 0] - 1
    order = (image_left * image_left.shape[0] + rank).argsort()  # OpenVINO's integers have 32 bits
    best = order[(rank[order] < predictor.max_detections).nonzero()[:, 0]]
    keep = left[best]
    return image[keep], boxes[keep], scores[keep], classes[keep]


def fuse_batch(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    image: Tensor,
    masks: Tensor,
    labels: Tensor,
    num_classes: int,
    limits: FusionLimits,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fuse` of a batch; see `DeployedDetector` for arguments and results."""
    shown = (scores >= limits.score).nonzero()[:, 0]
    if torch.compiler.is_compiling():
        torch._check(shown.shape[0] < _MOST)
    chosen = boxes[shown]
    rows = _cells(labels.shape[1], chosen[:, 1], chosen[:, 3], masks)
    columns = _cells(labels.shape[2], chosen[:, 0], chosen[:, 2], masks)
    place = _place_exported if torch.compiler.is_compiling() else _place
    panoptic, counts, segments = place(labels, rows, columns, masks[shown], image[shown], limits.overlap)
    # Stuff fills what is left.
    free = torch.where(panoptic == 0, labels, torch.full_like(labels, num_classes)).flatten(1)  # (N, H * W)
    areas = torch.zeros(labels.shape[0], num_classes + 1, dtype=torch.int64).scatter_add(1, free, torch.ones_like(free))
    large = (areas > 0) & (areas >= limits.stuff_area)
    is_stuff = torch.tensor([0] + [1] * (num_classes - 1) + [0])
    large = large.long() * is_stuff
    ids = (counts[:, None] + large.cumsum(1)) * large  # (N, C + 1)
    panoptic = panoptic + ids.gather(1, free).reshape(panoptic.shape)
    segments = torch.zeros_like(image).scatter(0, shown, segments)
    return panoptic, segments, ids[:, :num_classes], (areas * large)[:, :num_classes]


def _cells(size: int, low: Tensor, high: Tensor, masks: Tensor) -> Tensor:
    """(D, size, M) weights of `paste_masks` for all pixels of a side."""
    return interpolation_weights(torch.arange(size), low[:, None], high[:, None], masks.shape[2])


def _place_one(
    instance: Tensor,
    panoptic: Tensor,
    counts: Tensor,
    segments: Tensor,
    rows: Tensor,
    columns: Tensor,
    masks: Tensor,
    image: Tensor,
    overlap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = instance.reshape(1)
    row, column = rows.index_select(0, chosen)[0], columns.index_select(0, chosen)[0]
    own = image.index_select(0, chosen)
    mask = row @ masks.index_select(0, chosen)[0] @ column.T >= 0.5  # `MASK_THRESHOLD`; scripting knows no globals
    here = torch.arange(panoptic.shape[0]) == own  # (N,)
    free = mask[None] & (panoptic == 0) & here[:, None, None]
    area, free_area = mask.sum(), free.sum()
    accepted = (free_area > 0) & ((area - free_area).double() / area.double() <= overlap)
    counts = counts + (here & accepted).long()
    number = counts.index_select(0, own)
    panoptic = torch.where(free & accepted, number, panoptic)
    segments = torch.where((torch.arange(segments.shape[0]) == instance) & accepted, number, segments)
    return panoptic, counts, segments


@torch.jit.script_if_tracing
def _place(
    labels: Tensor, rows: Tensor, columns: Tensor, masks: Tensor, image: Tensor, overlap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Instances from the best down, each where no better one lies.

    Returns:
        (N, H, W) ids, (N,) how many there are, and (D,) the id of each instance or 0.
    """
    panoptic, segments = torch.zeros_like(labels), torch.zeros_like(image)
    counts = torch.zeros(labels.shape[0], dtype=torch.int64)
    for instance in range(image.shape[0]):
        panoptic, counts, segments = _place_one(
            torch.tensor(instance), panoptic, counts, segments, rows, columns, masks, image, overlap
        )
    return panoptic, counts, segments


def _place_exported(
    labels: Tensor, rows: Tensor, columns: Tensor, masks: Tensor, image: Tensor, overlap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_place` for torch.export, which has its own loop."""

    def unfinished(instance, panoptic, counts, segments):
        return instance < image.shape[0]

    def place_one(instance, panoptic, counts, segments):
        placed = _place_one(instance, panoptic, counts, segments, rows, columns, masks, image, overlap)
        return (instance + 1, *placed)

    start = (
        torch.zeros((), dtype=torch.int64),
        torch.zeros_like(labels),
        torch.zeros(labels.shape[0], dtype=torch.int64),
        torch.zeros_like(image),
    )
    return torch._higher_order_ops.while_loop(unfinished, place_one, start)[1:]
