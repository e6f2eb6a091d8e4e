"""The box head: class scores and refined boxes from the features of a region (Fast R-CNN, arXiv:1504.08083)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from resnest_det.backbone.layers import Conv2d, get_norm
from resnest_det.detector.boxes import BoxLoss, clip_boxes, decode_boxes, image_limits
from resnest_det.detector.suppression import suppress
from resnest_det.distributed import mean_count
from resnest_det.errors import ArgumentError

PLAIN_L1 = BoxLoss(weights=(10.0, 10.0, 5.0, 5.0))


class FastRCNNConvFCHead(nn.Module):
    """3x3 convolutions `conv1`, `conv2`, ... and then fully connected layers `fc1`, `fc2`, ..., a ReLU after each.

    Args:
        in_channels, resolution: of the pooled regions (R, in_channels, resolution, resolution).
        conv_dims, fc_dims: outputs of each layer; either may be empty, but not both.
        norm: of the convolutions, see `get_norm`.

    Attribute `out_channels`: number of outputs of a region, flattened.

    Raises:
        ArgumentError: both are empty.
    """

    def __init__(self, in_channels: int, resolution: int, conv_dims: Sequence[int], fc_dims: Sequence[int], norm: str = ""):
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ArgumentError("conv_dims", "the box head needs a layer, fc_dims is empty too")
        self.num_conv, self.num_fc = len(conv_dims), len(fc_dims)
        for i, channels in enumerate(conv_dims, start=1):
            conv = Conv2d(
                in_channels,
                channels,
                3,
                padding=1,
                bias=not norm,
                norm=get_norm(norm, channels),
                activation=nn.ReLU(inplace=True),
            )
            c2_msra_fill(conv)
            self.add_module(f"conv{i}", conv)
            in_channels = channels
        features = in_channels * resolution * resolution
        for i, channels in enumerate(fc_dims, start=1):
            fc = nn.Linear(features, channels)
            c2_xavier_fill(fc)
            self.add_module(f"fc{i}", fc)
            features = channels
        self.out_channels = features

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_channels, resolution, resolution) to (R, out_channels)."""
        for i in range(1, self.num_conv + 1):
            x = getattr(self, f"conv{i}")(x)
        x = x.flatten(1)
        for i in range(1, self.num_fc + 1):
            x = F.relu_(getattr(self, f"fc{i}")(x))
        return x


class BoxPredictor(nn.Module):
    """Scores of K classes and the background, the last, and box deltas: for each class or, class-agnostic, one for all.

    Args:
        in_channels: features of a region.
        num_classes: K, without the background.
        class_agnostic: one box for all classes.
        box_loss: of the deltas, which has their weights too.
        score_threshold, nms_threshold, max_detections: of `detect`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        box_loss: BoxLoss = PLAIN_L1,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ):
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 if class_agnostic else 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.box_loss = box_loss
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, 4 * K) or (R, 4) for features (R, in_channels)."""
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, logits: Tensor, deltas: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor) -> dict[str, Tensor]:
        """`loss_cls` and `loss_box_reg` of R regions.

        Args:
            logits, deltas: as from `forward`.
            boxes: (R, 4) the regions.
            labels: (R,) their classes, K for background.
            true_boxes: (R, 4) the objects of the regions, of no meaning for background.

        Both are means over all R regions, background included, so that every object weighs the same whatever their number.
        """
        count = mean_count(len(labels), labels.device)
        cls_loss = F.cross_entropy(logits, labels, reduction="sum") / count
        foreground = (labels < self.num_classes).nonzero().squeeze(1)
        if self.class_agnostic:
            deltas = deltas[foreground]
        else:
            deltas = deltas.unflatten(1, (self.num_classes, 4))[foreground, labels[foreground]]
        box_loss = self.box_loss.total(deltas, boxes[foreground], true_boxes[foreground])
        return {"loss_cls": cls_loss, "loss_box_reg": box_loss / count * self.box_loss.factor}

    def boxes_of_classes(self, deltas: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """(R, 4) boxes predicted for one class of each region; the class does not matter if class-agnostic."""
        if not self.class_agnostic:
            rows = torch.arange(len(deltas), device=deltas.device)
            deltas = deltas.unflatten(1, (self.num_classes, 4))[rows, classes]
        return decode_boxes(deltas, boxes, self.box_loss.weights)

    def scores(self, logits: Tensor) -> Tensor:
        """(R, K) probabilities of the classes for logits (R, K + 1)."""
        return logits.float().softmax(dim=1)[:, :-1]

    def detect(
        self, scores: Tensor, deltas: Tensor, boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections of each image: refined boxes above the score threshold, suppressed class by class, best first.

        Args:
            scores: (R, K) of the regions of all images.
            deltas: (R, 4 * K) or (R, 4).
            boxes: (R_i, 4) regions of each image.
            image_sizes: (height, width) to clip to.
        Returns:
            `boxes` (D, 4) in input pixels, `scores` (D,), `classes` (D,) int64 of each image.
        """
        finite = scores.isfinite().all(dim=1) & deltas.isfinite().all(dim=1)
        region, classes = ((scores > self.score_threshold) & finite[:, None]).nonzero(as_tuple=True)
        # Only candidates are decoded: a few hundred of R * K boxes.
        if not self.class_agnostic:
            deltas = deltas.unflatten(1, (self.num_classes, 4))[region, classes]
        else:
            deltas = deltas[region]
        images = torch.cat([torch.full_like(image_boxes[:, 0], i, dtype=torch.int64) for i, image_boxes in enumerate(boxes)])
        images = images[region]
        candidates = decode_boxes(deltas, torch.cat(list(boxes))[region], self.box_loss.weights)
        candidates = clip_boxes(candidates, image_limits(image_sizes, candidates.device)[images])
        return self.suppress(candidates, scores[region, classes], classes, images, len(boxes))

    def suppress(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, images: Tensor, num_images: int
    ) -> list[dict[str, Tensor]]:
        """The best of (R, 4) `boxes` of each image, suppressed class by class, best first.

        Args:
            scores, classes, images: (R,) of each box, `images` the index of its image.
        """
        kept = suppress(
            boxes,
            scores,
            images,
            classes,
            num_images=num_images,
            num_groups=self.num_classes,
            threshold=self.nms_threshold,
            max_boxes=self.max_detections,
        )
        return [{"boxes": boxes[own], "scores": scores[own], "classes": classes[own]} for own in kept]
