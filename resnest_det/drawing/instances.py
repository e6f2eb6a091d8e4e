"""Pictures of predictions beside the truth."""

import colorsys
import logging
import os
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from resnest_det.data.image import read_record_image
from resnest_det.data.panoptic import with_truth
from resnest_det.errors import UserError
from resnest_det.evaluation.masks import segmentation_to_mask

logger = logging.getLogger(__name__)

_LONGEST_SIDE_AT_LEAST = 480
_MASK_OPACITY = 0.45
_GAP = 8


def draw_comparison(
    image: Image.Image, truth: dict, prediction: dict, class_names: list[str], score_threshold: float = 0.5
) -> Image.Image:
    """An image twice: with the true objects (left) and with the predicted ones (right).

    Small images are enlarged to a longest side of 480 pixels, so that labels can be read.

    Args:
        image: RGB.
        truth: `boxes` (N, 4) XYXY in pixels of the image, `classes` (N,) and optionally `masks` (N, height, width) bool.
        prediction: the same with `scores` (N,).
        class_names: name of each contiguous class.
        score_threshold: detections below it are not drawn; the caption counts them.
    """
    scores = torch.as_tensor(prediction["scores"]).cpu()
    shown = torch.nonzero(scores >= score_threshold).flatten()
    shown = shown[torch.argsort(scores[shown], descending=True, stable=True)]
    kept = {key: value.cpu()[shown] for key, value in prediction.items() if key in ("boxes", "scores", "classes", "masks")}
    labels = [f"{class_names[c]} {100 * s:.0f}%" for c, s in zip(kept["classes"].tolist(), kept["scores"].tolist())]
    caption = f"predicted: {len(shown)} of {len(scores)} at {100 * score_threshold:.0f}% or more"
    if len(scores) and not len(shown):
        caption += f" (best {100 * scores.max():.0f}%)"
    left = draw_instances(image, truth, [class_names[c] for c in truth["classes"].tolist()])
    right = draw_instances(image, kept, labels)
    return side_by_side([(f"truth: {len(truth['boxes'])}", left), (caption, right)])


def draw_instances(image: Image.Image, instances: dict, labels: list[str]) -> Image.Image:
    """An image, enlarged if small, with boxes, translucent outlined masks and labels.

    Args:
        image: RGB.
        instances: `boxes` (N, 4) XYXY in pixels of the image, `classes` (N,), optionally `masks` (N, height, width) bool.
        labels: text for each instance.
    """
    canvas = enlarge(image)
    scale = canvas.width / image.width
    boxes = (instances["boxes"].cpu().double() * scale).tolist()
    colors = instance_colors(instances["classes"].tolist())
    if "masks" in instances and len(boxes):
        masks = resize_masks(instances["masks"].cpu(), canvas.height, canvas.width)
        canvas = paint_masks(canvas, masks, colors)
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), color in zip(boxes, colors):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=2)
    write_labels(canvas, [(box[0], box[1]) for box in boxes], labels, colors)
    return canvas


def enlarge(image: Image.Image) -> Image.Image:
    """An RGB copy with a longest side of at least 480 pixels."""
    scale = max(1.0, _LONGEST_SIDE_AT_LEAST / max(image.size))
    return image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def resize_masks(masks: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Bool masks (N, h, w) resized to (N, height, width)."""
    if masks.shape[1:] == (height, width):
        return masks.bool().numpy()
    larger = F.interpolate(masks.float()[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return (larger >= 0.5).numpy()


def paint_masks(canvas: Image.Image, masks: np.ndarray, colors: list[tuple[int, int, int]]) -> Image.Image:
    """Paint translucent masks with solid outlines, smaller masks over larger ones."""
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        mask, color = masks[index], np.array(colors[index], dtype=np.float32)
        pixels[mask] += _MASK_OPACITY * (color - pixels[mask])
        pixels[outline(mask)] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a bool mask within two pixels of its edge."""
    inside = mask
    for _ in range(2):
        around = np.pad(inside, 1)
        inside = inside & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return mask & ~inside


def write_labels(
    canvas: Image.Image, corners: list[tuple[float, float]], labels: list[str], colors: list[tuple[int, int, int]]
) -> None:
    """Write each label near its corner, inside the picture and, if there is room, clear of other labels."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    taken: list[tuple[float, float, float, float]] = []
    for (x, y), label, color in zip(corners, labels, colors):
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        width, height = right - left + 6, bottom - top + 6
        place = place_label(x, y - height, width, height, canvas.size, taken) or _fit(x, y - height, width, height, canvas.size)
        taken.append(place)
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
        draw.text((place[0] + 3 - left, place[1] + 3 - top), label, font=font, fill="white" if dark else "black")


def place_label(
    x: float, y: float, width: float, height: float, size: tuple[int, int], taken: list[tuple[float, float, float, float]]
) -> tuple[float, float, float, float] | None:
    """A box (x0, y0, x1, y1) for a label, inside a picture of `size` (width, height) and clear of the boxes in `taken`.

    It begins at (x, y), or up to four label heights below or above; None if all these places are taken.
    """
    places = (_fit(x, y + shift * height, width, height, size) for shift in (0, 1, 2, -1, 3, -2, 4, -3, -4))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), None)


def _fit(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    x = max(0, min(x, size[0] - width))
    y = max(0, min(y, size[1] - height))
    return x, y, x + width, y + height


def _overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def instance_colors(classes: list[int]) -> list[tuple[int, int, int]]:
    """A color for each instance: the n-th of a class has the same in every picture, and consecutive ones differ."""
    count: dict[int, int] = {}
    colors = []
    for label in classes:
        nth = count[label] = count.get(label, -1) + 1
        # Steps of the golden ratio keep any number of hues apart.
        hue = (0.618034 * (3 * label + nth) + 0.05) % 1.0
        value = (1.0, 0.8, 0.9)[(label + nth) % 3]
        colors.append(tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, value)))
    return colors


def side_by_side(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of equal height in a row, each under its caption."""
    font = ImageFont.load_default(size=15)
    head = 26
    width = sum(picture.width for _, picture in panels) + _GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, panels[0][1].height + head), "white")
    draw = ImageDraw.Draw(sheet)
    x = 0
    for caption, picture in panels:
        draw.text((x + 4, 4), caption, font=font, fill="black")
        sheet.paste(picture, (x, head))
        x += picture.width + _GAP
    return sheet


def truth_of_record(record: dict) -> dict:
    """Boxes, classes and, if all annotations have segmentations, masks of a dataset's record, without crowds."""
    annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    truth = {"boxes": boxes, "classes": torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)}
    if annotations and all(a.get("segmentation") for a in annotations):
        height, width = record["height"], record["width"]
        truth["masks"] = torch.stack(
            [torch.from_numpy(segmentation_to_mask(a["segmentation"], height, width)).bool() for a in annotations]
        )
    return truth


class ComparisonWriter:
    """Writes a few pictures of predictions beside the truth during an evaluation.

    Args:
        dataset: `records` (Detectron2's standard dicts) and `metadata.thing_classes`.
        output_dir: folder of the pictures, `<image file>.png`.
        count: number of pictures, spread evenly over the images that have objects.
        score_threshold: detections below it are not drawn.
    """

    def __init__(self, dataset, output_dir: str, count: int = 4, score_threshold: float = 0.5):
        self.class_names = dataset.metadata.thing_classes
        self.output_dir = output_dir
        self.score_threshold = score_threshold
        self.records = spread_records([record for record in dataset.records if record.get("annotations")], count)

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Write the pictures of the batch's chosen images."""
        for record, image, output, stem in chosen_images(self.records, batch, outputs):
            if record.get("objects_in_png"):
                record, _ = with_truth(record)
            picture = draw_comparison(image, truth_of_record(record), output, self.class_names, self.score_threshold)
            save_picture(picture, os.path.join(self.output_dir, f"{stem}.png"))

    def report(self) -> None:
        """Log where the pictures are."""
        logger.info("predictions beside the truth: %d pictures in %s", len(self.records), self.output_dir)


def spread_records(records: list[dict], count: int) -> dict[int, dict]:
    """Up to `count` evenly spread records, by image id."""
    step = max(1, len(records) / count)
    chosen = [records[int(i * step)] for i in range(min(count, len(records)))]
    return {record["image_id"]: record for record in chosen}


def chosen_images(
    records: Mapping[int, dict], batch: list[dict], outputs: list[dict]
) -> Iterator[tuple[dict, Image.Image, dict, str]]:
    """Of the samples whose images `records` has: the record, the image in RGB, the model's output, and the file's name without
    folder and suffix."""
    for sample, output in zip(batch, outputs, strict=True):
        record = records.get(sample["image_id"])
        if record is not None:
            stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
            yield record, Image.fromarray(read_record_image(record, "RGB")), output, stem


def save_picture(picture: Image.Image, path: str) -> None:
    """Write a PNG, and make its folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
