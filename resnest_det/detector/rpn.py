"""Region proposal network (Faster R-CNN, arXiv:1506.01497, section 3.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d
from resnest_det.detector.anchors import AnchorGenerator
from resnest_det.detector.boxes import BoxLoss, clip_boxes, decode_boxes, image_limits, larger_than
from resnest_det.detector.matching import match_boxes, subsample
from resnest_det.detector.suppression import suppress
from resnest_det.errors import UserError

PLAIN_L1 = BoxLoss()


class RPNHead(nn.Module):
    """3x3 convolutions shared by all levels, then for each anchor one objectness logit and four deltas.

    Args:
        in_channels: channels of every level.
        anchors_per_position: A.
        conv_dims: channels of each 3x3 convolution, -1 for as many as come in.
    """

    def __init__(self, in_channels: int, anchors_per_position: int, conv_dims: Sequence[int] = (-1,)):
        super().__init__()
        convs = []
        for channels in conv_dims:
            channels = in_channels if channels == -1 else channels
            convs.append(Conv2d(in_channels, channels, 3, padding=1, activation=nn.ReLU(inplace=True)))
            in_channels = channels
        # A single convolution is called `conv` and several `conv.conv0`, `conv.conv1`: these are the names in checkpoints.
        self.conv = convs[0] if len(convs) == 1 else nn.Sequential()
        if len(convs) > 1:
            for i, conv in enumerate(convs):
                self.conv.add_module(f"conv{i}", conv)
        self.objectness_logits = nn.Conv2d(in_channels, anchors_per_position, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, anchors_per_position * 4, 1)
        for conv in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, H * W * A) and deltas (N, H * W * A, 4) for each level, in the order of its anchors."""
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            level_deltas = self.anchor_deltas(hidden).unflatten(1, (-1, 4))  # (N, A, 4, H, W)
            deltas.append(level_deltas.permute(0, 3, 4, 1, 2).flatten(1, 3))
        return logits, deltas


class Proposals(NamedTuple):
    """Proposals of one image, best first: `boxes` (P, 4) in input pixels and `logits` (P,) of objectness."""

    boxes: Tensor
    logits: Tensor


class RPN(nn.Module):
    """Proposes boxes, and learns to.

    Args:
        in_features: names of the pyramid levels.
        head: predicts logits and deltas.
        anchor_generator: lays the anchors.
        iou_thresholds, iou_labels: of matching anchors with objects, see `match_boxes`.
        boundary_threshold: anchors further than this many pixels outside the image train nothing; negative for no limit.
        batch_size_per_image: anchors an image that train the head, at most `positive_fraction` of them positive.
        pre_nms_topk, post_nms_topk: proposals kept a level before, and an image after suppression, in (training, testing).
        nms_threshold: IoU of suppression.
        min_box_size: proposals with a side not longer than this, in pixels, are dropped.
        box_loss: of the deltas, which has their weights too.
        cls_loss_weight: factor of the loss of the logits.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: RPNHead,
        anchor_generator: AnchorGenerator,
        iou_thresholds: Sequence[float] = (0.3, 0.7),
        iou_labels: Sequence[int] = (0, -1, 1),
        boundary_threshold: float = -1,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        pre_nms_topk: tuple[int, int] = (2000, 1000),
        post_nms_topk: tuple[int, int] = (1000, 1000),
        nms_threshold: float = 0.7,
        min_box_size: float = 0.0,
        box_loss: BoxLoss = PLAIN_L1,
        cls_loss_weight: float = 1.0,
    ):
        super().__init__()
        self.in_features = tuple(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.iou_thresholds = tuple(iou_thresholds)
        self.iou_labels = tuple(iou_labels)
        self.boundary_threshold = boundary_threshold
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = post_nms_topk
        self.nms_threshold = nms_threshold
        self.min_box_size = min_box_size
        self.box_loss = box_loss
        self.cls_loss_weight = cls_loss_weight

    def forward(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], targets: Sequence[dict] | None = None
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals for each image and, given targets, the losses `loss_rpn_cls` and `loss_rpn_loc`.

        Args:
            features: pyramid maps by name.
            image_sizes: (height, width) of each image before padding.
            targets: for each image `boxes` (M, 4), `generator` (or None) for sampling and `name` for messages.

        Raises:
            UserError: in training, predictions that are not finite.
        """
        maps = [features[name] for name in self.in_features]
        # A level of H x W positions has R_l = H * W * A anchors; all levels together have R.
        anchors = self.anchor_generator([tuple(feature.shape[-2:]) for feature in maps])  # (R_l, 4) each
        logits, deltas = self.rpn_head(maps)  # (N, R_l) and (N, R_l, 4) each
        losses = {}
        if targets is not None:
            losses = self.losses(torch.cat(anchors), torch.cat(logits, dim=1), torch.cat(deltas, dim=1), image_sizes, targets)
        # Proposals are inputs of the second stage, not a path for its gradients.
        with torch.no_grad():
            when = 1 if targets is None else 0
            boxes, scores, levels = self.best_of_levels(anchors, logits, deltas, self.pre_nms_topk[when])
            if targets is not None:
                check_finite(boxes, scores, [target["name"] for target in targets])
            proposals = self.suppress(boxes, scores, levels, image_sizes, self.post_nms_topk[when])
        return proposals, losses

    def losses(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, image_sizes: Sequence[tuple[int, int]], targets: Sequence[dict]
    ) -> dict[str, Tensor]:
        """Losses over a sample of R `anchors` (R, 4), for `logits` (N, R) and `deltas` (N, R, 4); both are divided by the
        number of anchors that would be drawn if there were enough."""
        positives, sampled, labels, matched = [], [], [], []
        for image, (positive, negative, true_boxes) in enumerate(self.sample_anchors(anchors, image_sizes, targets)):
            offset = image * len(anchors)
            positives.append(positive + offset)
            sampled += [positive + offset, negative + offset]
            labels += [torch.ones_like(positive), torch.zeros_like(negative)]
            matched.append(true_boxes)
        positives, sampled, labels = torch.cat(positives), torch.cat(sampled), torch.cat(labels)

        cls_loss = F.binary_cross_entropy_with_logits(logits.flatten()[sampled], labels.to(logits.dtype), reduction="sum")
        box_loss = self.box_loss.total(deltas.flatten(0, 1)[positives], anchors[positives % len(anchors)], torch.cat(matched))
        count = self.batch_size_per_image * len(targets)
        return {"loss_rpn_cls": cls_loss / count * self.cls_loss_weight, "loss_rpn_loc": box_loss / count * self.box_loss.factor}

    @torch.no_grad()
    def sample_anchors(
        self, anchors: Tensor, image_sizes: Sequence[tuple[int, int]], targets: Sequence[dict]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image indices of the positive and of the negative anchors that train the head, and the positives' boxes."""
        matches, labels = [], []
        for (height, width), target in zip(image_sizes, targets):
            image_matches, image_labels = match_boxes(
                target["boxes"], anchors, self.iou_thresholds, self.iou_labels, allow_low_quality=True
            )
            if self.boundary_threshold >= 0:
                inside = (anchors[:, :2] >= -self.boundary_threshold).all(dim=1)
                inside &= (anchors[:, 2] < width + self.boundary_threshold) & (anchors[:, 3] < height + self.boundary_threshold)
                image_labels.masked_fill_(~inside, -1)
            matches.append(image_matches)
            labels.append(image_labels)
        generators = [target["generator"] for target in targets]
        drawn = subsample(labels, self.batch_size_per_image, self.positive_fraction, 0, generators)
        return [
            (positive, negative, target["boxes"][image_matches[positive]])
            for (positive, negative), image_matches, target in zip(drawn, matches, targets)
        ]

    def best_of_levels(
        self, anchors: Sequence[Tensor], logits: Sequence[Tensor], deltas: Sequence[Tensor], topk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `topk` best boxes of each level: `boxes` (N, P, 4), `scores` (N, P), which are logits, and `levels` (P,)."""
        boxes, scores, levels = [], [], []
        for level, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas)):
            # Choosing before decoding: decoding all anchors of all levels costs more than the rest of this.
            top_logits, top = level_logits.topk(min(level_logits.shape[1], topk), dim=1)  # (N, K)
            top_deltas = level_deltas.gather(1, top[:, :, None].expand(-1, -1, 4))  # (N, K, 4)
            decoded = decode_boxes(top_deltas.flatten(0, 1), level_anchors[top.flatten()], self.box_loss.weights)
            boxes.append(decoded.unflatten(0, top.shape))
            scores.append(top_logits)
            levels.append(torch.full((top.shape[1],), level, device=top.device))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels)

    def suppress(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, image_sizes: Sequence[tuple[int, int]], topk: int
    ) -> list[Proposals]:
        """The `topk` best boxes of each image, clipped to it, after suppression within each level; see `best_of_levels`."""
        clipped = clip_boxes(boxes, image_limits(image_sizes, boxes.device)[:, None])
        finite = boxes.isfinite().all(dim=2) & scores.isfinite()
        images, positions = (finite & larger_than(clipped, self.min_box_size)).nonzero(as_tuple=True)
        clipped, scores = clipped[images, positions], scores[images, positions]  # (R, 4) and (R,) of all images
        kept = suppress(
            clipped,
            scores,
            images,
            levels[positions],
            num_images=len(image_sizes),
            num_groups=len(self.in_features),
            threshold=self.nms_threshold,
            max_boxes=topk,
        )
        return [Proposals(clipped[image_kept], scores[image_kept]) for image_kept in kept]


def check_finite(boxes: Tensor, scores: Tensor, names: Sequence[str]) -> None:
    """Refuse boxes (N, P, 4) and scores (N, P) of N images, called `names`, that are not finite.

    Raises:
        UserError: naming the first such image.
    """
    finite = torch.stack((boxes.isfinite().flatten(1).all(dim=1), scores.isfinite().all(dim=1)), dim=1)
    for name, (finite_boxes, finite_scores) in zip(names, finite.tolist()):
        if not (finite_boxes and finite_scores):
            what = "boxes" if finite_scores else "objectness logits"
            raise UserError(
                f"{name}: the predicted {what} of the proposals are not finite, training has diverged; a lower learning rate, a "
                "longer warm-up or clipping of gradients usually helps"
            )
