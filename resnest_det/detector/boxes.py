"""Boxes as (N, 4) float32 tensors of XYXY pixel corners: delta coding and regression losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from resnest_det.errors import ArgumentError

# No box grows by more than 16 to 1000 pixels in one step: exp() of an untrained prediction would overflow.
MAX_LOG_SCALE = math.log(1000.0 / 16)

IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
BOX_LOSSES = ("smooth_l1", *IOU_LOSSES)
EXACT_L1_BETA = 1e-5  # below this a smooth L1 loss is computed as plain L1, without dividing by beta


def encode_boxes(boxes: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas (dx, dy, dw, dh) that take `boxes` to `targets` (R-CNN, arXiv:1311.2524, appendix C, equations 6-9).

    Args:
        boxes, targets: (N, 4) boxes of positive width and height.
        weights: factor of each of the four deltas.
    Returns:
        (N, 4) deltas.
    """
    center_x, center_y, width, height = _centers_and_sizes(boxes)
    target_x, target_y, target_width, target_height = _centers_and_sizes(targets)
    wx, wy, ww, wh = weights
    return torch.stack(
        (
            wx * (target_x - center_x) / width,
            wy * (target_y - center_y) / height,
            ww * torch.log(target_width / width),
            wh * torch.log(target_height / height),
        ),
        dim=1,
    )


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """The inverse of `encode_boxes`, with dw and dh clamped to log(1000 / 16).

    Args:
        deltas: (N, 4 * k) deltas, k of them for each box (one a class).
        boxes: (N, 4) boxes.
    Returns:
        (N, 4 * k) boxes, float32 whatever the dtype of the deltas.
    """
    deltas = deltas.float().unflatten(1, (-1, 4))  # (N, k, 4)
    center_x, center_y, width, height = (side[:, None] for side in _centers_and_sizes(boxes.float()))
    wx, wy, ww, wh = weights
    new_x = deltas[..., 0] / wx * width + center_x
    new_y = deltas[..., 1] / wy * height + center_y
    new_width = torch.exp((deltas[..., 2] / ww).clamp(max=MAX_LOG_SCALE)) * width
    new_height = torch.exp((deltas[..., 3] / wh).clamp(max=MAX_LOG_SCALE)) * height
    corners = (new_x - 0.5 * new_width, new_y - 0.5 * new_height, new_x + 0.5 * new_width, new_y + 0.5 * new_height)
    return torch.stack(corners, dim=-1).flatten(1)


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, y0, x1, y1 = boxes.unbind(1)
    width, height = x1 - x0, y1 - y0
    return x0 + 0.5 * width, y0 + 0.5 * height, width, height


def larger_than(boxes: Tensor, side: float = 0.0) -> Tensor:
    """(...) bool: which boxes (..., 4) are wider and higher than `side` pixels."""
    return (boxes[..., 2] - boxes[..., 0] > side) & (boxes[..., 3] - boxes[..., 1] > side)


def image_limits(image_sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(N, 4) float32: width, height, width, height of each image, given as (height, width)."""
    limits = [(width, height, width, height) for height, width in image_sizes]
    return torch.tensor(limits, dtype=torch.float32).to(device, non_blocking=True)


def clip_boxes(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (..., 4) inside of `limits` (..., 4), see `image_limits`."""
    return torch.minimum(boxes.clamp(min=0), limits)


@dataclass(frozen=True)
class BoxLoss:
    """How predicted deltas are compared with the boxes they should give.

    Args:
        kind: "smooth_l1" compares deltas; "giou", "diou" and "ciou" compare decoded boxes.
        beta: where smooth L1 turns from quadratic to linear; 0 for plain L1.
        weights: factors of the four deltas, of decoding too.
        factor: of the loss.

    Raises:
        ArgumentError: `kind` is none of these, or `beta` is negative.
    """

    kind: str = "smooth_l1"
    beta: float = 0.0
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    factor: float = 1.0

    def __post_init__(self):
        if self.kind not in BOX_LOSSES:
            raise ArgumentError("kind", f"{self.kind!r} is not supported; supported: {', '.join(map(repr, BOX_LOSSES))}")
        if not self.beta >= 0:
            raise ArgumentError("beta", f"{self.beta} is not supported; it must be at least 0")
        if len(self.weights) != 4:
            raise ArgumentError("weights", f"{tuple(self.weights)} is not supported; it must be four factors")

    def total(self, deltas: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
        """Sum over N boxes, without `factor`, for predicted `deltas` (N, 4) of `boxes` (N, 4) with these `targets` (N, 4)."""
        if self.kind in IOU_LOSSES:
            return IOU_LOSSES[self.kind](decode_boxes(deltas, boxes, self.weights), targets, reduction="sum")
        expected = encode_boxes(boxes, targets, self.weights)
        if self.beta < EXACT_L1_BETA:
            return F.l1_loss(deltas, expected, reduction="sum")
        return F.smooth_l1_loss(deltas, expected, beta=self.beta, reduction="sum")
