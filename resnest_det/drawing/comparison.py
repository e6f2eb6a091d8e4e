"""Truth and prediction of an image side by side, with what was missed and what is false."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from resnest_det.data.records import Record
from resnest_det.drawing.objects import Color, draw_objects
from resnest_det.drawing.sheets import enlarge, scale_to_read, side_by_side
from resnest_det.evaluation.masks import segmentation_to_mask
from resnest_det.evaluation.matches import Matches, match

WRONG: Color = (255, 0, 0)
_BEST_FEW = 3


def draw_comparison(
    image: Image.Image,
    truth: dict,
    prediction: dict,
    class_names: list[str],
    score_threshold: float = 0.5,
    colors: list[Color] | None = None,
) -> Image.Image:
    """An image twice: with the true objects (left) and with the predicted ones (right).

    Objects that were missed, and detections that are false, have a red frame and say so. Where nothing reaches the threshold, the
    best few are drawn faintly. Small images are enlarged to a longest side of 480 pixels, so that labels can be read.

    Args:
        image: RGB.
        truth: `boxes` (N, 4) XYXY in pixels of the image, `classes` (N,) and optionally `masks` (N, height, width) bool and
            `crowd` (N,) bool, for regions that are neither drawn nor missed.
        prediction: the same with `scores` (N,).
        class_names: name of each contiguous class.
        score_threshold: detections below it are not drawn; the caption counts them.
        colors: see `draw_objects`.
    """
    found = best_first(prediction)
    sure = int((found["scores"] >= score_threshold).sum())
    matches = match_image(truth, first(found, sure), (image.width, image.height))
    crowd = truth.get("crowd", torch.zeros(len(truth["boxes"]), dtype=torch.bool))
    objects, missed = {key: value[~crowd] for key, value in truth.items()}, matches.missed[~crowd.numpy()]

    left = _panel(image, objects, class_names, colors, missed, "missed")
    caption = f"predicted: {sure} of {len(found['scores'])} at {100 * score_threshold:.0f}% or more"
    shown = first(found, sure or _BEST_FEW)
    if sure:
        caption += f", {matches.false.sum()} of them false"
    elif len(shown["scores"]):
        caption += f"; the best {len(shown['scores'])}, faint"
    false = matches.false if sure else np.zeros(len(shown["scores"]), dtype=bool)
    right = _panel(image, shown, class_names, colors, false, "false", faint=not sure)
    return side_by_side([(f"truth: {len(objects['boxes'])}, {missed.sum()} of them missed", left), (caption, right)])


def best_first(prediction: dict) -> dict:
    """The detections of an image by descending score, on the CPU."""
    found = {key: prediction[key].cpu() for key in ("boxes", "scores", "classes", "masks") if key in prediction}
    order = torch.argsort(found["scores"], descending=True, stable=True)
    return {key: value[order] for key, value in found.items()}


def first(found: dict, count: int) -> dict:
    """The first `count` objects."""
    return {key: value[:count] for key, value in found.items()}


def match_image(truth: dict, prediction: dict, size: tuple[int, int]) -> Matches:
    """`match` for the boxes of one image of `size` (width, height); see `draw_comparison` for the others."""
    crowd = truth.get("crowd", [False] * len(truth["boxes"]))
    classes = sorted({*truth["classes"].tolist(), *prediction["classes"].tolist()})
    return match(
        {
            "images": [{"id": 1, "width": size[0], "height": size[1]}],
            "categories": [{"id": label} for label in classes],
            "annotations": [
                {"image_id": 1, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(in_crowd)}
                for label, box, in_crowd in zip(truth["classes"].tolist(), _xywh(truth["boxes"]), crowd)
            ],
        },
        [
            {"image_id": 1, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(
                prediction["classes"].tolist(), _xywh(prediction["boxes"]), prediction["scores"].tolist()
            )
        ],
    )


def _xywh(boxes: torch.Tensor) -> list[list[float]]:
    boxes = boxes.cpu().double()
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()


def _panel(
    image: Image.Image,
    instances: dict,
    class_names: list[str],
    colors: list[Color] | None,
    wrong: np.ndarray,
    word: str,
    faint: bool = False,
) -> Image.Image:
    labels = [class_names[label] for label in instances["classes"].tolist()]
    if "scores" in instances:
        labels = [f"{label} {100 * score:.0f}%" for label, score in zip(labels, instances["scores"].tolist())]
    return draw_enlarged(
        image,
        instances,
        class_names,
        colors=colors,
        labels=[f"{word} {label}" if is_wrong else label for label, is_wrong in zip(labels, wrong)],
        frames=[WRONG if is_wrong else None for is_wrong in wrong],
        faint=faint,
    )


def draw_enlarged(image: Image.Image, instances: dict, class_names: list[str], **options) -> Image.Image:
    """`draw_objects` on an image that is enlarged, if it is small, to a longest side of 480 pixels.

    Args:
        image: RGB.
        instances: `boxes`, `classes` and optionally `masks`, see `draw_comparison`.
        options: others of `draw_objects`.
    """
    canvas = enlarge(image)
    masks = instances.get("masks")
    if masks is not None and len(masks) and masks.shape[1:] != (canvas.height, canvas.width):
        size = (canvas.height, canvas.width)
        masks = F.interpolate(masks.float()[None], size=size, mode="bilinear", align_corners=False)[0] >= 0.5
    boxes = instances["boxes"].double() * scale_to_read(*image.size)
    return Image.fromarray(draw_objects(np.asarray(canvas), boxes, instances["classes"], class_names, masks=masks, **options))


def truth_of_record(record: Record) -> dict:
    """Boxes, classes, `crowd` and, if all objects have segmentations, masks of a dataset's record."""
    annotations = record.get("annotations", [])
    boxes = torch.tensor([each["bbox"] for each in annotations], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    truth = {
        "boxes": boxes,
        "classes": torch.tensor([each["category_id"] for each in annotations], dtype=torch.int64),
        "crowd": torch.tensor([bool(each.get("iscrowd")) for each in annotations], dtype=torch.bool),
    }
    if annotations and all(each.get("segmentation") for each in annotations):
        height, width = record["height"], record["width"]
        masks = [torch.from_numpy(segmentation_to_mask(each["segmentation"], height, width)).bool() for each in annotations]
        truth["masks"] = torch.stack(masks)
    return truth
