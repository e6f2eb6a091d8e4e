"""Objects drawn on an image: boxes, masks and labels, one color a class."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from resnest_det.data.semantic import class_color
from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import without_middle

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

_MASK_OPACITY = 0.45
_LONGEST_LABEL = 60  # characters
_FAINT = 0.4  # of the opacity of what is drawn otherwise


def class_colors(count: int) -> list[Color]:
    """The (R, G, B) color of each class where a dataset gives none: by its index alone, the same in every picture and command."""
    return [class_color(None, index, "") for index in range(count)]


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray | torch.Tensor,
    classes: Sequence[int] | np.ndarray | torch.Tensor,
    class_names: Sequence[str],
    *,
    scores: Sequence[float] | np.ndarray | torch.Tensor | None = None,
    masks: Sequence[np.ndarray | torch.Tensor] | np.ndarray | torch.Tensor | None = None,
    colors: Sequence[Color] | None = None,
    labels: Sequence[str] | None = None,
    frames: Sequence[Color | None] | None = None,
    faint: bool = False,
) -> np.ndarray:
    """An image with objects on it: translucent outlined masks, boxes, and labels, clear of each other where there is room.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        boxes: (N, 4) XYXY in pixels of the image.
        classes: (N,) indices of `class_names` and `colors`.
        scores: (N,) from 0 to 1, written behind the names.
        masks: (H, W) bool of each object, in a stack or any other sequence; one is asked for at a time.
        colors: (R, G, B) of each class; None takes `class_colors`.
        labels: text of each object, in the place of its name and score.
        frames: a second color around the box of each object that has one, which tells it from the others.
        faint: draw as if not sure.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float64).cpu().reshape(-1, 4)
    if not len(boxes):
        return image.copy()
    classes = [int(each) for each in classes]
    colors = class_colors(max(classes) + 1) if colors is None else colors
    of_each = [tuple(colors[label]) for label in classes]
    if labels is None:
        labels = [class_names[label] for label in classes]
        if scores is not None:
            labels = [f"{label} {100 * float(score):.0f}%" for label, score in zip(labels, scores)]

    canvas = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    opacity = _MASK_OPACITY * (_FAINT if faint else 1)
    width = max(2, round(max(image.shape[:2]) / 500))
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = torch.argsort(sizes, descending=True, stable=True).tolist()  # small objects over large ones
    if masks is not None:
        for index in order:
            mask, rows, columns = _part(masks, index)
            _paint_mask(canvas.numpy()[:, rows, columns], mask, of_each[index], opacity, width)
    bare = canvas
    for index in order if frames is not None else ():
        if frames[index] is not None:
            canvas = _boxes(canvas, boxes[index, None], [frames[index]], width, outside=2 * width)
        canvas = _boxes(canvas, boxes[index, None], [of_each[index]], width)
    if frames is None:  # at once: each call copies the whole image
        canvas = _boxes(canvas, boxes[order], [of_each[index] for index in order], width)
    if faint:
        canvas = torch.lerp(bare.float(), canvas.float(), _FAINT).round().byte()
    picture = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    _write_labels(picture, boxes.tolist(), labels, of_each, frames or [None] * len(boxes))
    return np.array(picture)


def _part(masks: Sequence[np.ndarray | torch.Tensor], index: int) -> tuple[np.ndarray, slice, slice]:
    """A mask where its object is, (rows, columns) bool, and these rows and columns of the image."""
    # Never whole where it need not be: on a photograph of 12 megapixels that is most of the time and of the memory.
    if isinstance(masks, CompactMasks):
        mask, rows, columns = masks.part(index)
        mask = mask.cpu().numpy()
    else:
        mask = np.asarray(torch.as_tensor(masks[index]).cpu().bool())
        rows, columns = slice(0, mask.shape[0]), slice(0, mask.shape[1])
    own_rows = _extent(mask.any(axis=1))
    mask = mask[own_rows]
    own_columns = _extent(mask.any(axis=0))
    rows = slice(rows.start + own_rows.start, rows.start + own_rows.stop)
    columns = slice(columns.start + own_columns.start, columns.start + own_columns.stop)
    return np.ascontiguousarray(mask[:, own_columns]), rows, columns


def _extent(used: np.ndarray) -> slice:
    """From the first to the last that is true of a vector."""
    where = np.flatnonzero(used)
    return slice(where[0], where[-1] + 1) if len(where) else slice(0, 0)


def _paint_mask(part: np.ndarray, mask: np.ndarray, color: Color, opacity: float, width: int) -> None:
    """Paint a mask (H, W) into a part of an image (3, H, W), with a solid outline of `width` pixels inside it."""
    # What is faint has no outline: it would be the strongest line of the picture.
    outline = mask & ~_eroded(mask, width)
    for of_mask, alpha in ((mask, opacity), (outline, 1.0 if opacity == _MASK_OPACITY else opacity)):
        for plane, table in zip(part, _blended(color, alpha)):
            painted = np.frombuffer(plane.tobytes().translate(table), dtype=np.uint8).reshape(plane.shape)
            np.copyto(plane, painted, where=of_mask)


@functools.lru_cache(maxsize=1024)
def _blended(color: Color, opacity: float) -> list[bytes]:
    """For red, green and blue what each of the 256 values becomes under a color."""
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    painted = draw_segmentation_masks(ramp, torch.ones(1, 256, dtype=torch.bool), alpha=opacity, colors=[color])
    return [plane.numpy().tobytes() for plane in painted]


def _eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """The pixels of a mask (H, W) all of whose neighbors up to `radius` rows and columns away belong to it."""
    mask = np.pad(mask, radius)
    for axis in (0, 1):
        side = 1  # of what has been looked at so far, which two steps of its own length double
        while side < 2 * radius + 1:
            step = min(side, 2 * radius + 1 - side)
            ends = mask.shape[axis] - step
            mask = mask[:ends] & mask[step:] if axis == 0 else mask[:, :ends] & mask[:, step:]
            side += step
    return mask


def _boxes(canvas: torch.Tensor, boxes: torch.Tensor, colors: list[Color], width: int, outside: int = 0) -> torch.Tensor:
    """Boxes (N, 4) drawn so that their borders lie inside them, or up to `outside` pixels further out."""
    low, high = boxes[:, :2] - outside, boxes[:, 2:] + outside
    drawn = torch.cat([low, torch.maximum(low, high - 1)], dim=1)
    return draw_bounding_boxes(canvas, drawn, colors=colors, width=width + outside)


def _write_labels(
    picture: Image.Image, boxes: list[Box], labels: Sequence[str], colors: Sequence[Color], frames: Sequence[Color | None]
) -> None:
    """Write each label at its box, inside the picture and, if there is room, clear of other labels; small boxes' first."""
    # torchvision writes labels over each other and across the picture's border.
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=min(max(12, round(max(picture.size) / 55)), 48))
    taken: list[Box] = []
    for (x, y, _, _), label, color, frame in zip(boxes, labels, colors, frames):
        label = without_middle(label, _LONGEST_LABEL)
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        width, height = right - left + 6, bottom - top + 6
        place = place_label(x, y - height, width, height, picture.size, taken) or _fit(x, y - height, width, height, picture.size)
        taken.append(place)
        corners = (place[0], place[1], place[2] - 1, place[3] - 1)
        draw.rectangle(corners, fill=color, outline=frame, width=2 if frame else 1)
        draw.text((place[0] + 3 - left, place[1] + 3 - top), label, font=font, fill="black" if is_light(color) else "white")


def is_light(color: Color) -> bool:
    """Whether black is easier to read on it than white."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] >= 140


def place_label(x: float, y: float, width: float, height: float, size: tuple[int, int], taken: Iterable[Box]) -> Box | None:
    """A box (x0, y0, x1, y1) for a label, inside a picture of `size` (width, height) and clear of the boxes in `taken`.

    It begins at (x, y), or up to four label heights below or above; None if all these places are taken.
    """
    places = (_fit(x, y + shift * height, width, height, size) for shift in (0, 1, 2, -1, 3, -2, 4, -3, -4))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), None)


def _fit(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Box:
    x = max(0, min(x, size[0] - width))
    y = max(0, min(y, size[1] - height))
    return x, y, x + width, y + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
