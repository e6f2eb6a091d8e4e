"""Large images in tiles: each is looked at by itself, and objects that several have seen become one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.inference.images import Picture
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result

_AT_A_SEAM = 2.0  # pixels from it: the object may go on beyond
_MOST_INSIDE = 0.6  # of an object at a seam, covered by another of its class: it is a part of that


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: evenly, none beyond the end, neighbours sharing at least the fraction `overlap`."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def predict_tiled(predictor: Predictor, picture: Picture, tile: tuple[int, int], overlap: float, batch: int = 1) -> Result:
    """What `predictor` finds in an image, tile by tile.

    Args:
        tile: (height, width) in pixels; at least as large as what is looked for, since no tile sees more.
        overlap: fraction of a tile that its neighbour sees, too.
        batch: tiles that go through the network together.

    Raises:
        UserError: the model labels pixels, which are not joined.
    """
    if predictor.classes.stuff.names:
        raise UserError("--tile joins objects, and this model labels pixels: leave it away")
    height, width = picture.pixels.shape[:2]
    corners = [(y, x) for y in tile_starts(height, tile[0], overlap) for x in tile_starts(width, tile[1], overlap)]
    found: list[Result] = []
    for first in range(0, len(corners), batch):
        parts = [
            Picture(picture.pixels[y : y + tile[0], x : x + tile[1]], picture.name, picture.rgb)
            for y, x in corners[first : first + batch]
        ]
        found += predictor.predict_pictures(parts)
    return _joined(found, corners, replace(found[0], height=height, width=width), predictor.backend.nms_threshold)


def _joined(found: Sequence[Result], corners: Sequence[tuple[int, int]], whole: Result, threshold: float) -> Result:
    boxes, at_seam = [], []
    for result, (y, x) in zip(found, corners):
        boxes.append(result.boxes + torch.tensor([x, y, x, y]))
        # Sides of the tile that are none of the image.
        inner = torch.tensor([x > 0, y > 0, x + result.width < whole.width, y + result.height < whole.height])
        distance = torch.stack([result.boxes[:, 0], result.boxes[:, 1]], 1)
        distance = torch.cat([distance, torch.tensor([result.width, result.height]) - result.boxes[:, 2:]], 1)
        at_seam.append(((distance < _AT_A_SEAM) & inner).any(1))
    joined = replace(
        whole,
        boxes=torch.cat(boxes),
        scores=torch.cat([result.scores for result in found]),
        class_ids=torch.cat([result.class_ids for result in found]),
        masks=None
        if whole.masks is None
        else CompactMasks(
            torch.cat([result.masks.probabilities for result in found]), torch.cat(boxes), (whole.height, whole.width)
        ),
    )
    return joined.chosen(keep_one_of_each(joined.boxes, joined.scores, joined.class_ids, torch.cat(at_seam), threshold))


def keep_one_of_each(boxes: Tensor, scores: Tensor, classes: Tensor, at_seam: Tensor, threshold: float) -> Tensor:
    """Indices of the objects to keep, best first.

    Of two of a class that overlap (IoU) more than `threshold` the better one stays, and a whole one rather than one that touches
    the seam of its tile. One at a seam also goes where most of it lies inside a kept one: it is a part of that.

    Args:
        boxes: (N, 4) XYXY; scores, classes: (N,); at_seam: (N,) bool.
    """
    order = sorted(range(len(boxes)), key=lambda i: (bool(at_seam[i]), -float(scores[i])))
    kept: list[int] = []
    for index in order:
        rivals = [other for other in kept if classes[other] == classes[index]]
        if rivals:
            box, others = boxes[index][None], boxes[rivals]
            overlap = box_iou(box, others)[0]
            if bool((overlap > threshold).any()):
                continue
            if at_seam[index]:
                corner = torch.maximum(box[:, :2], others[:, :2]), torch.minimum(box[:, 2:], others[:, 2:])
                inside = (corner[1] - corner[0]).clamp(min=0).prod(1) / box_area(box).clamp(min=1e-6)
                if bool((inside > _MOST_INSIDE).any()):
                    continue
        kept.append(index)
    return torch.tensor(sorted(kept, key=lambda i: -float(scores[i])), dtype=torch.int64)
