"""A panoptic map drawn over its image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnest_det.drawing.objects import place_label
from resnest_det.drawing.sheets import enlarge

_OPACITY = 0.6
_SMALLEST_NAMED = 0.002


def draw_panoptic(image: Image.Image, segment_ids: np.ndarray, segments: list[dict]) -> Image.Image:
    """An image with a panoptic map over it: every segment translucent in its color, outlined and named.

    Small images are enlarged to a longest side of 480 pixels. Void pixels stay as they are.

    Args:
        image: RGB.
        segment_ids: (height, width) integers, 0 is void.
        segments: {"id", "label", "color": (red, green, blue)} of each. Segments of one color get different shades of it.
            Segments below 0.2 % of the image, or without room for a name, are not named.
    """
    canvas = enlarge(image)
    ids = np.asarray(Image.fromarray(segment_ids.astype(np.int32)).resize(canvas.size, Image.Resampling.NEAREST))
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    shades = _shades([tuple(segment["color"]) for segment in segments])
    for segment, shade in zip(segments, shades):
        mask = ids == segment["id"]
        pixels[mask] += _OPACITY * (np.array(shade, dtype=np.float32) - pixels[mask])
    pixels[_borders(ids)] = 255
    canvas = Image.fromarray(pixels.round().astype(np.uint8))

    _write_names(canvas, ids, segments)
    return canvas


def draw_labels(image: Image.Image, labels: np.ndarray, classes: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """An image with the classes of its pixels over it.

    Args:
        image: RGB.
        labels: (height, width) integers; those that are no class have no label.
        classes: name and color of each class.
    """
    # Segments of a map: all pixels of a class are one, and 0 is for those that have no label.
    labels = np.where(labels < len(classes), labels.astype(np.int32), -1)
    present = [label for label in np.unique(labels).tolist() if label >= 0]
    segments = [{"id": label + 1, "label": classes[label][0], "color": classes[label][1]} for label in present]
    return draw_panoptic(image, labels + 1, segments)


def _write_names(canvas: Image.Image, ids: np.ndarray, segments: list[dict]) -> None:
    """Write names in the middle of segments, large ones first, as long as there is room."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    taken: list[tuple[float, float, float, float]] = []
    areas = {segment["id"]: int((ids == segment["id"]).sum()) for segment in segments}
    for segment in sorted(segments, key=lambda segment: -areas[segment["id"]]):
        if areas[segment["id"]] < _SMALLEST_NAMED * ids.size:
            break
        rows, columns = np.nonzero(ids == segment["id"])
        # The pixel nearest to the middle: the middle itself may lie in a hole, or beside a bent segment.
        nearest = np.argmin((rows - np.median(rows)) ** 2 + (columns - np.median(columns)) ** 2)
        width, height = draw.textlength(segment["label"], font=font) + 4, 15
        place = place_label(columns[nearest] - width / 2, rows[nearest] - height / 2, width, height, canvas.size, taken)
        if place is not None:
            taken.append(place)
            draw.text(
                (place[0] + width / 2, place[1] + height / 2),
                segment["label"],
                font=font,
                fill="white",
                anchor="mm",
                stroke_width=2,
                stroke_fill="black",
            )


def _shades(colors: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The colors; repeated ones are shifted towards black and white in turn."""
    count: dict[tuple[int, int, int], int] = {}
    shades = []
    for color in colors:
        nth = count[color] = count.get(color, -1) + 1
        amount = (0.0, 0.3, 0.45, 0.15)[nth % 4]
        target = 255 if nth % 2 else 0
        shades.append(tuple(round(channel + amount * (target - channel)) for channel in color))
    return shades


def _borders(ids: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour belongs to another segment."""
    borders = np.zeros(ids.shape, dtype=bool)
    borders[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    borders[:-1] |= ids[:-1] != ids[1:]
    return borders
