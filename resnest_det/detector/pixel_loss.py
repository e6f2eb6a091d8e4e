"""The loss of a head that labels pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.distributed import mean_count
from resnest_det.errors import ArgumentError


@dataclass(frozen=True)
class PixelLoss:
    """Cross entropy over the pixels that have a label, of all of them or of the hardest.

    Args:
        weight: factor of the loss.
        ignore_value: label of pixels that are not learned from.
        hardest: fraction of the pixels whose loss counts, the largest ones (DeeperLab, arXiv:1902.05093, section 3.2.1). Below 1
            pixels without a label are among those that are counted, with a loss of zero, as in Detectron2's DeepLab.
        class_weights: of the pixels of each class; () is 1 for all. A mean over all pixels is divided by their weights.

    Raises:
        ArgumentError: `hardest` is no such fraction, or weights are negative, not finite or all zero.
    """

    weight: float = 1.0
    ignore_value: int = 255
    hardest: float = 1.0
    class_weights: Sequence[float] = ()

    def __post_init__(self):
        if not 0 < self.hardest <= 1:
            raise ArgumentError("hardest", f"{self.hardest} is not supported; supported: above 0, up to 1")
        weights = self.class_weights
        if weights and not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise ArgumentError("class_weights", f"{list(self.class_weights)} must be 0 or more, not infinite, and not all 0")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss (0-d); zero, with gradients, where no pixel has a label.

        Args:
            logits: (N, C, H, W).
            targets: (N, H, W) integer classes, or `ignore_value`.
        """
        targets = targets.long()
        weights = None
        if self.class_weights:
            weights = torch.tensor(self.class_weights, dtype=logits.dtype).to(logits.device, non_blocking=True)
        losses = F.cross_entropy(
            logits, targets, weights, reduction="sum" if self.hardest == 1 else "none", ignore_index=self.ignore_value
        )
        if self.hardest < 1:
            return self.weight * losses.flatten().topk(max(1, int(self.hardest * losses.numel()))).values.mean()
        labelled = targets != self.ignore_value
        if weights is None:
            return self.weight * losses / mean_count(labelled.sum(), logits.device)
        # In units of the smallest, so that a pixel alone counts as one.
        unit = min(weight for weight in self.class_weights if weight > 0)
        units = (weights[targets.masked_fill(~labelled, 0)] / unit).masked_fill(~labelled, 0)
        return self.weight * losses / (unit * mean_count(units.sum(), logits.device))


DEFAULT_LOSS = PixelLoss()


class PixelHead(nn.Module):
    """A head that labels pixels.

    Args:
        num_classes: C.
        loss: what it learns by.
        align_corners: whether the logits' outermost pixels lie on the image's outermost pixels where they are enlarged; otherwise
            the outer edges of both lie on each other.
    """

    def __init__(self, num_classes: int, loss: PixelLoss, align_corners: bool = False):
        super().__init__()
        if loss.class_weights and len(loss.class_weights) != num_classes:
            raise ArgumentError("class_weights", f"has {len(loss.class_weights)} values for {num_classes} classes")
        self.num_classes = num_classes
        self.loss = loss
        self.align_corners = align_corners

    @property
    def ignore_value(self) -> int:
        """The label of pixels that are not learned from."""
        return self.loss.ignore_value

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`loss_sem_seg`, see `PixelLoss`.

        Args:
            logits: (N, C, H, W).
            targets: (N, H, W) integer classes, or `ignore_value`.
        """
        return {"loss_sem_seg": self.loss(logits, targets)}


def enlarge(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Logits (N, C, h, w) at `size`, interpolated bilinearly; as they are if they have it."""
    # In single precision also where convolutions run in half: the loss sums over all pixels.
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def rescale_logits(
    logits: Tensor, input_size: tuple[int, int], image_size: tuple[int, int], align_corners: bool = False
) -> Tensor:
    """Logits of one image (C, H, W), without what was padded and at the size of the image itself.

    Args:
        input_size, image_size: (height, width) of the network's input without padding, and of the image.
        align_corners: see `PixelHead`.
    Returns:
        (C, height, width), interpolated bilinearly; without a copy where they have that size.
    """
    return enlarge(logits[None, :, : input_size[0], : input_size[1]], image_size, align_corners)[0]
