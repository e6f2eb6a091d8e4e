"""A detector as one function of tensors, which can be traced: the same parts, joined without lists of images."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnest_det.detector.boxes import decode_boxes, larger_than
from resnest_det.detector.cascade import CascadeROIHeads
from resnest_det.detector.rcnn import GeneralizedRCNN


class DeployedDetector(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor, output_size: Tensor):
        model = self.model
        height, width = images.shape[-2:]
        features = model.backbone(self.padded(images))
        limits = torch.stack([torch.full((), side, dtype=torch.float32) for side in (width, height)]).repeat(2)
        regions = propose(model.proposal_generator, features, limits)
        heads = model.roi_heads
        maps = [features[name] for name in heads.in_features]
        scores, deltas, regions = classify(heads, maps, regions, limits)
        image, boxes, scores, classes = detect(heads.final_predictor, scores, deltas, regions, limits, images.shape[0])
        outer = output_size.flip(0).repeat(2).to(boxes.dtype)
        scaled = clip(boxes * (outer / limits), outer)
        keep = larger_than(scaled).nonzero()[:, 0]
        image, boxes, scores, classes, scaled = image[keep], boxes[keep], scores[keep], classes[keep], scaled[keep]
        outputs = (scaled, scores, classes, image)
        if heads.mask_head is not None:
            regions = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
            outputs += (heads.mask_head(heads.mask_pooler.pool(maps, regions), classes).sigmoid(),)
        return outputs

    def padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        multiple = self.model.backbone.size_divisibility
        below, right = -height % multiple, -width % multiple
        normalised = (images.float() - self.model.pixel_mean) / self.model.pixel_std
        return F.pad(normalised, (0, right, 0, below))


def clip(boxes, limits):
    return torch.minimum(boxes.clamp(min=0), limits)


def suppress(boxes, scores, columns, rows, threshold):
    """NMS within groups."""
    pitch = boxes.max().clamp(min=0) + 1 if False else None
    shift = torch.stack((columns, rows, columns, rows), dim=1)
    return torchvision.ops.nms(boxes + shift, scores, threshold)


def propose(rpn, features, limits):
    maps = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator([tuple(feature.shape[-2:]) for feature in maps])
    logits, deltas = rpn.rpn_head(maps)
    topk = rpn.pre_nms_topk[1]
    boxes, scores = [], []
    rows = torch.arange(logits[0].shape[0], device=limits.device)[:, None].expand(-1, topk)
    rows = (rows.to(torch.float32) * (limits[1] + 1)).flatten()
    for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas):
        filled = F.pad(level_logits, (0, topk), value=float("-inf"))
        top_logits, top = filled.topk(topk, dim=1)
        top = torch.minimum(top, torch.full((), level_logits.shape[1] - 1, dtype=top.dtype))
        top_deltas = level_deltas.gather(1, top[:, :, None].expand(-1, -1, 4))
        decoded = clip(decode_boxes(top_deltas.flatten(0, 1), level_anchors[top.flatten()], rpn.box_loss.weights), limits)
        flat = top_logits.flatten()
        usable = decoded.isfinite().all(dim=1) & flat.isfinite() & larger_than(decoded, rpn.min_box_size)
        decoded = torch.where(usable[:, None], decoded, torch.zeros_like(decoded))
        flat = torch.where(usable, flat, torch.full_like(flat, float("-inf")))
        keep = suppress(decoded, flat, torch.zeros_like(rows), rows, rpn.nms_threshold)
        kept = torch.zeros_like(flat).scatter(0, keep, torch.ones_like(keep, dtype=flat.dtype)) > 0
        scores.append(torch.where(kept, flat, torch.full_like(flat, float("-inf"))).reshape(-1, topk))
        boxes.append(decoded.reshape(-1, topk, 4))
    boxes, scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
    count = min(rpn.post_nms_topk[1], topk * len(maps))
    best, order = scores.topk(count, dim=1)
    image, rank = best.isfinite().nonzero().unbind(1)
    if torch.compiler.is_exporting():
        torch._check(image.shape[0] < 2**31)
    chosen = boxes[image, order[image, rank]]
    return torch.cat((image[:, None].to(chosen.dtype), chosen), dim=1)


def classify(heads, maps, regions, limits):
    if not isinstance(heads, CascadeROIHeads):
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_pooler.pool(maps, regions)))
        return heads.box_predictor.scores(logits), deltas, regions
    total = 0
    for stage, (head, predictor) in enumerate(zip(heads.box_head, heads.box_predictor)):
        if stage:
            boxes = heads.box_predictor[stage - 1].boxes_of_classes(deltas, regions[:, 1:], classes=None)
            regions = torch.cat((regions[:, :1], clip(boxes, limits)), dim=1)
        logits, deltas = predictor(head(heads.box_pooler.pool(maps, regions)))
        total = total + predictor.scores(logits)
    return total * (1.0 / len(heads.box_predictor)), deltas, regions


def detect(predictor, scores, deltas, regions, limits, batch):
    finite = scores.isfinite().all(dim=1) & deltas.isfinite().all(dim=1)
    region, classes = ((scores > predictor.score_threshold) & finite[:, None]).nonzero().unbind(1)
    if predictor.class_agnostic:
        deltas = deltas[region]
    else:
        deltas = deltas.unflatten(1, (predictor.num_classes, 4))[region, classes]
    chosen, scores = regions[region], scores[region, classes]
    boxes, image = clip(decode_boxes(deltas, chosen[:, 1:], predictor.box_loss.weights), limits), chosen[:, 0].long()
    pitch = limits.max() + 1
    keep = suppress(boxes, scores, classes * pitch, image * pitch, predictor.nms_threshold)
    # rank among the image's own
    of_image = image[keep][:, None] == torch.arange(batch, device=image.device)
    rank = of_image.long().cumsum(0).gather(1, image[keep][:, None])[:, 0] - 1
    best = (rank < predictor.max_detections).nonzero()[:, 0]
    keep = keep[best]
    order = (image[keep] * predictor.max_detections + rank[best]).argsort()
    keep = keep[order]
    return image[keep], boxes[keep], scores[keep], classes[keep]
