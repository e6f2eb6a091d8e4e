"""Whether the anchors of a configuration fit the objects of its data: a network proposes what anchors can be moved onto."""

import numpy as np
from fvcore.common.config import CfgNode

from resnest_det.configuration.tables import tasks_of
from resnest_det.data.statistics import Statistics
from resnest_det.detector.anchors import overlaps_of_shapes

_SHOWN = 10


def anchor_doubts(cfg: CfgNode, data: Statistics) -> list[str]:
    """What about the sizes of objects and anchors makes it hard to learn, each in a line that names the keys.

    Objects are measured as training shows them, at the middle one of INPUT.MIN_SIZE_TRAIN.
    """
    boxes = boxes_as_shown(cfg, data)
    if not tasks_of(cfg).objects or not len(boxes):
        return []
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    smallest = min(np.ravel(np.concatenate([np.ravel(level) for level in sizes])))
    lines = []
    below = (np.sqrt(boxes.prod(axis=1)) < smallest / 2).mean()
    if below > 0.5:
        lines.append(
            f"{below:.0%} of the objects of {data.name} are smaller than half of the smallest anchor, {smallest:g} pixels, as "
            f"shown at INPUT.MIN_SIZE_TRAIN: hardly any will be found. Larger images or smaller MODEL.ANCHOR_GENERATOR.SIZES help"
        )
    # Anchors an octave apart and on a grid seldom fit to the upper threshold; between the two they are no background.
    needed = float(np.mean(cfg.MODEL.RPN.IOU_THRESHOLDS))
    best = overlaps_of_shapes(boxes, sizes, ratios).max(axis=1)
    unmet = [
        name
        for label, name in enumerate(data.classes)
        if (data.labels == label).any() and best[data.labels == label].max() < needed
    ]
    if unmet:
        shown = ", ".join(unmet[:_SHOWN]) + (f" and {len(unmet) - _SHOWN} more" if len(unmet) > _SHOWN else "")
        lines.append(
            f"no anchor fits any object of {shown} to an IoU of {needed:g} (between MODEL.RPN.IOU_THRESHOLDS), so only the "
            "best of ill-fitting ones learn it; see MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS"
        )
    return lines


def boxes_as_shown(cfg: CfgNode, data: Statistics) -> np.ndarray:
    """(M, 2) width and height of each object in pixels of the resized image; none where they are not known."""
    if not len(data.boxes) or not (data.boxes > 0).all():
        return np.zeros((0, 2))
    short_side, most = float(np.median(cfg.INPUT.MIN_SIZE_TRAIN)), cfg.INPUT.MAX_SIZE_TRAIN
    if short_side <= 0:
        return data.boxes
    factors = short_side / data.image_sizes.min(axis=1)
    factors = np.minimum(factors, most / data.image_sizes.max(axis=1))
    return data.boxes * factors[data.image_of, None]
