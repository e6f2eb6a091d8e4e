"""Non-maximum suppression within groups of boxes, for all images of a batch."""

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

# Suppressed together, boxes take a bit for each pair of them: 200 MB.
MAX_TOGETHER = 40_000


def suppress(
    boxes: Tensor,
    scores: Tensor,
    images: Tensor,
    groups: Tensor,
    *,
    num_images: int,
    num_groups: int,
    threshold: float,
    max_boxes: int,
) -> list[Tensor]:
    """What is left of each image by suppression within each of its groups.

    Args:
        boxes: (R, 4) inside their images.
        scores: (R,).
        images, groups: (R,) int64, the image and the level or class of each.
        threshold: IoU above which the worse of two goes.
        max_boxes: to leave in an image.
    Returns:
        Indices of the boxes of each image, best first.
    """
    if boxes.device.type == "cpu" or len(boxes) > MAX_TOGETHER:
        # Each group alone takes fewer comparisons, and for a CPU nobody waits.
        members = [(images == image).nonzero().squeeze(1) for image in range(num_images)]
        return [own[batched_nms(boxes[own], scores[own], groups[own], threshold)[:max_boxes]] for own in members]
    size = boxes.max(dim=0).values[2:] if len(boxes) else boxes.new_zeros(2)
    across = math.ceil(num_groups**0.5)
    rows = images * math.ceil(num_groups / across) + torch.div(groups, across, rounding_mode="floor")
    left = suppress_in_plane(boxes, scores.float(), groups % across, rows, size, threshold)
    if num_images == 1:
        return [left[:max_boxes]]
    image = images[left]
    counts = (image[:, None] == torch.arange(num_images, device=image.device)).sum(dim=0).tolist()
    return [own[:max_boxes] for own in left[image.argsort(stable=True)].split(counts)]


def suppress_in_plane(boxes: Tensor, scores: Tensor, columns: Tensor, rows: Tensor, size: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes (R, 4) left by suppression within each place (column, row) of a plane, best first.

    Every place has a box's room to itself, `size` (width, height) and a pixel more. In a plane coordinates stay small enough to
    keep their digits, which a row of all classes of all images would not.
    """
    x, y = columns * (size[0] + 1), rows * (size[1] + 1)
    return nms(boxes + torch.stack((x, y, x, y), dim=1), scores, threshold)
