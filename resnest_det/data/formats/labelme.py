"""LabelMe: one JSON file an image, with its shapes."""

import base64
import binascii
import io
import math
import os

import msgspec
import numpy as np
from PIL import Image as Pillow

from resnest_det.data.annotation_files import Image
from resnest_det.data.formats.collector import Collector
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures, walk
from resnest_det.data.formats.sizes import image_of
from resnest_det.data.json_files import read_bytes
from resnest_det.errors import UserError

_POINTS_OF_A_CIRCLE = 64


class _Shape(msgspec.Struct):
    label: str | int | None
    points: list[tuple[float, float]]
    shape_type: str | None = None
    group_id: int | str | None = None
    mask: str | None = None


class _File(msgspec.Struct):
    shapes: list[_Shape] | None = None
    imagePath: str | None = None
    imageHeight: float | None = None
    imageWidth: float | None = None


def read_labelme(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read a file or the folder of such files.

    Polygons of one label and group are one object. Circles become polygons, rectangles boxes; points and lines are left out.

    Raises:
        UserError: a file is malformed, or a shape is not what its type says; names the file and the shape.
    """
    collector = Collector(files, notes)
    for path in json_files(files.path):
        where = os.path.relpath(path, files.path) if path != files.path else os.path.basename(path)
        try:
            content = msgspec.json.decode(read_bytes(path), type=_File, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: not a LabelMe file: {error}") from None
        if content.shapes is None:
            notes.add("left out: JSON files that are not LabelMe's", where)
            continue
        size = (content.imageHeight or 0, content.imageWidth or 0)
        if not all(0 <= side < 1e9 for side in size):
            raise UserError(f"{path}: imageHeight and imageWidth must be numbers of pixels, not {size[0]} and {size[1]}")
        name = (content.imagePath or "").replace("\\", "/") or os.path.splitext(os.path.basename(path))[0]
        known = (round(size[0]), round(size[1])) if min(size) > 0 else None
        image = image_of(collector, pictures, name, known, path, where, like=os.path.basename(path))
        if image is not None:
            _add_shapes(collector, image, content.shapes, path, where)
    return collector.labels()


def json_files(path: str) -> list[str]:
    """The file itself, or the JSON files at and below a folder."""
    if os.path.isfile(path):
        return [path]
    return [os.path.join(parent, name) for parent, names in walk(path) for name in names if name.lower().endswith(".json")]


def _add_shapes(collector: Collector, image: Image, shapes: list[_Shape], path: str, where: str) -> None:
    groups: dict[tuple, list[list[float]]] = {}
    first: dict[tuple, str] = {}
    for number, shape in enumerate(shapes, start=1):
        place, label = f"{where}, shape {number}", "" if shape.label is None else str(shape.label)
        kind, points = shape.shape_type or "polygon", shape.points
        if kind in ("polygon", "oriented_rectangle"):
            key = (label, number if shape.group_id is None else str(shape.group_id), shape.group_id is None)
            groups.setdefault(key, []).append([value for point in points for value in point])
            first.setdefault(key, place)
        elif kind == "rectangle":
            if len(points) < 2:
                raise UserError(f"{path}: shape {number}: a rectangle of {len(points)} points, which needs two")
            (x0, y0), (x1, y1) = points[0], points[1]
            if len(points) > 2:
                x0, y0 = (min(point[axis] for point in points) for axis in (0, 1))
                x1, y1 = (max(point[axis] for point in points) for axis in (0, 1))
            # The tool lets it be drawn from any corner.
            collector.box(image, label, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), place)
        elif kind == "circle":
            if len(points) != 2:
                raise UserError(
                    f"{path}: shape {number}: a circle of {len(points)} points, which needs a center and one of its edge"
                )
            collector.polygons(image, label, [ellipse(*points[0], *([math.dist(*points)] * 2))], place)
        elif kind == "mask":
            if not points or shape.mask is None:
                raise UserError(f"{path}: shape {number}: a mask without its pixels or its corner")
            collector.mask(image, label, _pixels(shape, image, f"{path}: shape {number}"), place)
        else:
            collector.notes.add(f"left out: shapes of type {kind[:40]}, which are no areas", place)
    for key, polygons in groups.items():
        collector.polygons(image, key[0], polygons, first[key])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[float]:
    """A polygon [x0, y0, ...] on an ellipse around (x, y)."""
    angles = np.linspace(0, 2 * np.pi, _POINTS_OF_A_CIRCLE, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1).reshape(-1).tolist()


def _pixels(shape: _Shape, image: Image, where: str) -> np.ndarray:
    """The mask of a shape, a PNG of its box, on the image's own pixels, (H, W) uint8."""
    try:
        with Pillow.open(io.BytesIO(base64.b64decode(shape.mask or "", validate=True)), formats=["PNG"]) as png:
            if png.width > image.width + 1 or png.height > image.height + 1:
                raise UserError(f"{where}: a mask of {png.width} x {png.height} pixels, larger than its image")
            pixels = np.asarray(png.convert("L")) if png.mode != "1" else np.asarray(png)
    except (OSError, ValueError, binascii.Error, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: its mask is no PNG: {error}") from None
    mask = np.zeros((image.height, image.width), dtype=np.uint8)
    x, y = (min(point[axis] for point in shape.points) for axis in (0, 1))
    if not (math.isfinite(x) and math.isfinite(y) and -1 <= x < image.width and -1 <= y < image.height):
        raise UserError(f"{where}: its mask begins at {x:g}, {y:g}, outside the image")
    x, y = max(round(x), 0), max(round(y), 0)
    part = mask[y : y + pixels.shape[0], x : x + pixels.shape[1]]
    part[:] = pixels[: part.shape[0], : part.shape[1]] != 0
    return mask
