"""From detections in the network's input back to the image: rescaled boxes, masks pasted at full size."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from resnest_det.detector.boxes import larger_than

MASK_THRESHOLD = 0.5


class CompactMasks(Sequence):
    """Masks as the mask head gives them. Each becomes pixels when it is asked for: 300 on a photograph would be gigabytes.

    Args:
        probabilities: (D, M, M) within the boxes.
        boxes: (D, 4) XYXY in pixels of the image.
        image_size: (height, width).
    """

    def __init__(self, probabilities: Tensor, boxes: Tensor, image_size: tuple[int, int]):
        self.probabilities = probabilities
        self.boxes = boxes
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Tensor:
        """(height, width) bool."""
        return paste_masks(self.probabilities[index][None], self.boxes[index][None], self.image_size)[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def chosen(self, indices: Tensor) -> "CompactMasks":
        """Some of them, by indices or by a bool for each."""
        return CompactMasks(self.probabilities[indices], self.boxes[indices], self.image_size)

    def cpu(self) -> "CompactMasks":
        """The same in main memory."""
        return CompactMasks(self.probabilities.cpu(), self.boxes.cpu(), self.image_size)

    def pixels(self) -> Tensor:
        """(D, height, width) bool, all at once."""
        return paste_masks(self.probabilities, self.boxes, self.image_size)


def rescale_detections(
    detections: dict[str, Tensor], input_size: tuple[int, int], image_size: tuple[int, int], compact: bool = False
) -> dict[str, Tensor | CompactMasks]:
    """Detections of one image, in the pixels of the image itself.

    Args:
        detections: `boxes` (D, 4) in input pixels, `scores`, `classes` and maybe `mask_probabilities` (D, M, M).
        input_size, image_size: (height, width) of the network's input without padding, and of the image.
        compact: leave the masks as they are.
    Returns:
        `boxes`, `scores`, `classes` and maybe `masks`, (D, height, width) bool or `CompactMasks`, without boxes that lie outside
        the image.
    """
    scale = detections["boxes"].new_tensor([image_size[1] / input_size[1], image_size[0] / input_size[0]]).repeat(2)
    boxes = clip_boxes_to_image(detections["boxes"] * scale, image_size)
    keep = larger_than(boxes)
    result = {"boxes": boxes[keep], "scores": detections["scores"][keep], "classes": detections["classes"][keep]}
    if "mask_probabilities" in detections:
        masks = CompactMasks(detections["mask_probabilities"][keep], result["boxes"], image_size)
        result["masks"] = masks if compact else masks.pixels()
    return result


def paste_masks(probabilities: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = MASK_THRESHOLD) -> Tensor:
    """Masks at the size of the image.

    Each mask is stretched over its box by bilinear interpolation, zero outside, and compared with the threshold at the
    centre of each pixel (Mask R-CNN, arXiv:1703.06870, section 3.1).

    Args:
        probabilities: (D, M, M) within the boxes.
        boxes: (D, 4) in pixels of the image.
        image_size: (height, width).
    Returns:
        (D, height, width) bool.
    """
    height, width = image_size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    probabilities, cells = probabilities.float(), probabilities.shape[-1]
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        left, right = max(int(x0) - 1, 0), min(int(x1) + 2, width)
        top, bottom = max(int(y0) - 1, 0), min(int(y1) + 2, height)
        # Bilinear interpolation on an upright grid is one matrix for the rows and one for the columns.
        rows = interpolation_weights(torch.arange(top, bottom, device=boxes.device), boxes[i, 1], boxes[i, 3], cells)
        columns = interpolation_weights(torch.arange(left, right, device=boxes.device), boxes[i, 0], boxes[i, 2], cells)
        masks[i, top:bottom, left:right] = rows @ probabilities[i] @ columns.T >= threshold
    return masks


def interpolation_weights(pixels: Tensor, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(..., P, cells) weight of each of the `cells` between `low` and `high` (both (..., 1)) for `pixels` (P,)."""
    positions = (pixels + 0.5 - low) / (high - low) * cells - 0.5
    distances = positions[..., None] - torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - distances.abs()).clamp(min=0)
