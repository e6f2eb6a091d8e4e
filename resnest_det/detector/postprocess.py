"""From detections in the network's input back to the image: rescaled boxes, masks pasted at full size."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor

from resnest_det.detector.boxes import clip_boxes, image_limits, larger_than

MASK_THRESHOLD = 0.5
MAX_PIXELS = 2**27  # pasted at once on a GPU: half a gigabyte of float32


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

    def part(self, index: int) -> tuple[Tensor, slice, slice]:
        """The mask where it can be anything, (rows, columns) bool, and these rows and columns of the image."""
        rows, columns = window(self.boxes[index].tolist(), self.image_size)
        with full_precision(self.boxes.device):
            return _paste(self.probabilities[index], self.boxes[index], rows, columns, MASK_THRESHOLD), rows, columns

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
    detections: Sequence[dict[str, Tensor]],
    input_sizes: Sequence[tuple[int, int]],
    image_sizes: Sequence[tuple[int, int]],
    compact: bool = False,
) -> list[dict[str, Tensor | CompactMasks]]:
    """Detections of each image, in the pixels of the image itself.

    Args:
        detections: `boxes` (D, 4) in input pixels, `scores`, `classes` and maybe `mask_probabilities` (D, M, M).
        input_sizes, image_sizes: (height, width) of the network's input without padding, and of the image.
        compact: leave the masks as they are.
    Returns:
        `boxes`, `scores`, `classes` and maybe `masks`, (D, height, width) bool or `CompactMasks`, without boxes that lie outside
        the image.
    """
    device = detections[0]["boxes"].device
    scales = [(inner[0] / outer[0], inner[1] / outer[1]) for inner, outer in zip(image_sizes, input_sizes)]
    scaled = zip(detections, image_limits(scales, device), image_limits(image_sizes, device))
    boxes = [clip_boxes(image["boxes"] * scale, limits) for image, scale, limits in scaled]
    # Almost always all of them stay: that is asked of all images at once.
    inside = iter(torch.cat([larger_than(image_boxes) for image_boxes in boxes]).tolist())
    results = []
    for found, image_boxes, size in zip(detections, boxes, image_sizes):
        found = found | {"boxes": image_boxes}
        kept = [index for index, is_inside in enumerate(islice(inside, len(image_boxes))) if is_inside]
        if len(kept) < len(image_boxes):
            chosen = torch.tensor(kept, dtype=torch.int64).to(device, non_blocking=True)
            found = {name: values[chosen] for name, values in found.items()}
        if "mask_probabilities" in found:
            masks = CompactMasks(found.pop("mask_probabilities"), found["boxes"], size)
            found["masks"] = masks if compact else masks.pixels()
        results.append(found)
    return results


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
    with full_precision(boxes.device):
        if boxes.device.type == "cpu":
            for i, box in enumerate(boxes.tolist()):
                rows, columns = window(box, image_size)
                masks[i, rows, columns] = _paste(probabilities[i], boxes[i], rows, columns, threshold)
            return masks
        # Whole, and many at once: for that the host has to know nothing of the boxes.
        at_once = max(1, MAX_PIXELS // (height * width))
        for start in range(0, len(boxes), at_once):
            some = slice(start, start + at_once)
            masks[some] = _paste(probabilities[some], boxes[some], slice(0, height), slice(0, width), threshold)
    return masks


def window(box: Sequence[float], image_size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the image, of (height, width), outside of which the mask of a box has nothing."""
    x0, y0, x1, y1 = (int(side) for side in box)
    return slice(max(y0 - 1, 0), min(y1 + 2, image_size[0])), slice(max(x0 - 1, 0), min(x1 + 2, image_size[1]))


def _paste(probabilities: Tensor, boxes: Tensor, rows: slice, columns: slice, threshold: float) -> Tensor:
    """(..., rows, columns) bool of masks (..., M, M) in boxes (..., 4)."""
    # Bilinear interpolation on an upright grid is one matrix for the rows and one for the columns.
    x0, y0, x1, y1 = boxes[..., None].unbind(-2)
    cells = probabilities.shape[-1]
    of_rows = interpolation_weights(torch.arange(rows.start, rows.stop, device=boxes.device), y0, y1, cells)
    of_columns = interpolation_weights(torch.arange(columns.start, columns.stop, device=boxes.device), x0, x1, cells)
    return of_rows @ probabilities.float() @ of_columns.mT >= threshold


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context without autocast, which would round a matrix product to half precision."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def interpolation_weights(pixels: Tensor, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(..., P, cells) weight of each of the `cells` between `low` and `high` (both (..., 1)) for `pixels` (P,)."""
    positions = (pixels + 0.5 - low) / (high - low) * cells - 0.5
    distances = positions[..., None] - torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - distances.abs()).clamp(min=0)
