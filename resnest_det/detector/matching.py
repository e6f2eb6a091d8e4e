"""Which predicted box belongs to which true box, and the random choice of those that train a head."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

# IoU values held at a time. All anchors of a large image against all its objects would take hundreds of megabytes.
MAX_PAIRS = 2**22


def match_boxes(
    true_boxes: Tensor, boxes: Tensor, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Assign to each box the true box that it overlaps most, and a label by how much.

    Args:
        true_boxes: (M, 4), possibly none.
        boxes: (N, 4).
        thresholds: ascending IoU thresholds.
        labels: one more than thresholds, each of 0 (background), 1 (foreground), -1 (neither): labels[i] is for an IoU below
            thresholds[i] and not below thresholds[i - 1].
        allow_low_quality: also label 1 whatever has the highest IoU with some true box, ties included (Faster R-CNN,
            arXiv:1506.01497, section 3.1.2, condition i).

    Returns:
        matches: (N,) int64, index of the true box (0 when there is none).
        match_labels: (N,) int8.
    """
    best = boxes.new_full((len(boxes),), -1.0)
    matches = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    low_quality = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    chunk = max(1, MAX_PAIRS // max(1, len(boxes)))
    for start in range(0, len(true_boxes) if len(boxes) else 0, chunk):
        iou = box_iou(true_boxes[start : start + chunk], boxes)  # (m, N)
        chunk_best, chunk_matches = iou.max(dim=0)
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        matches = torch.where(better, chunk_matches + start, matches)
        if allow_low_quality:
            # A true box that nothing touches would otherwise be matched by everything, with IoU 0.
            highest = iou.max(dim=1, keepdim=True).values.clamp(min=torch.finfo(iou.dtype).tiny)
            low_quality |= (iou == highest).any(dim=0)

    match_labels = torch.full_like(matches, labels[0], dtype=torch.int8)
    for threshold, label in zip(thresholds, labels[1:]):
        match_labels.masked_fill_(best >= threshold, label)
    return matches, match_labels.masked_fill_(low_quality, 1)


def subsample(
    labels: Sequence[Tensor],
    num_samples: int,
    positive_fraction: float,
    background: int,
    generators: Sequence[torch.Generator | None],
) -> list[tuple[Tensor, Tensor]]:
    """Draw up to `num_samples` of the labelled elements of each image, at most `positive_fraction` of them positive.

    Missing positives are made up for by negatives.

    Args:
        labels: (R_i,) labels of each image: -1 is never drawn, `background` is negative and everything else positive.
        generators: of each image, on the CPU; without one the global one of the labels' device.

    Returns:
        For each image indices of the drawn positives and negatives, int64.
    """
    chosen = [mask for image in labels for mask in ((image != -1) & (image != background), image == background)]
    # For all images at once: a GPU is waited for twice, whatever their number.
    counts = torch.stack([mask.sum() for mask in chosen]).tolist()
    elements = iter(torch.cat(chosen).nonzero().squeeze(1).split(counts))
    drawn, before = [], 0
    for image, generator in zip(labels, generators):
        positive, negative = next(elements), next(elements)
        num_positive = min(len(positive), int(num_samples * positive_fraction))
        num_negative = min(len(negative), num_samples - num_positive)
        positive = _draw(positive, num_positive, generator) - before
        negative = _draw(negative, num_negative, generator) - before - len(image)
        drawn.append((positive, negative))
        before += 2 * len(image)
    return drawn


def _draw(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        order = torch.randperm(len(indices), device=indices.device)[:count]
    else:
        order = torch.randperm(len(indices), generator=generator)[:count].to(indices.device, non_blocking=True)
    return indices[order]
