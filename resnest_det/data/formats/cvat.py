"""CVAT's own XML, "CVAT for images 1.1" and "CVAT for video 1.1" (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/)."""

import math

import numpy as np

from resnest_det.data.annotation_files import Image
from resnest_det.data.formats.collector import Collector, number
from resnest_det.data.formats.labelme import ellipse
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures
from resnest_det.data.formats.sizes import image_of
from resnest_det.data.formats.xml_tree import Element, read_xml
from resnest_det.errors import UserError

_NO_AREAS = ("polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read an export. Boxes, polygons, masks and ellipses are objects; lines, points, cuboids, skeletons and tags are left out.

    A rotated box becomes the polygon of its corners. Of a video every frame on which an object is seen is taken.

    Raises:
        UserError: the file is malformed, or a shape lacks a number or has a label that is not listed; names file and line.
    """
    tree = read_xml(files.path)
    if tree.tag != "annotations":
        raise UserError(f"{files.path}: line {tree.line}: <{tree.tag}>, expected <annotations>: is it an export of CVAT?")
    collector = Collector(files, notes, _listed(tree) or None)
    for element in tree.all("image"):
        where = f"line {element.line}"
        size = _size(element, files.path)
        image = image_of(collector, pictures, element.attributes.get("name", ""), size, f"{files.path}: {where}", where)
        for shape in element.children if image is not None else ():
            _add(collector, image, shape, shape.attributes.get("label", ""), files.path)
    for track in tree.all("track"):
        for shape in track.children:
            if shape.attributes.get("outside") == "1":
                continue
            image = _frame(collector, pictures, tree, shape, files.path)
            if image is not None:
                _add(collector, image, shape, track.attributes.get("label", ""), files.path)
    return collector.labels()


def _listed(tree: Element) -> list[str]:
    """Names of the labels of the task, or of the project or job."""
    for owner in ("task", "project", "job"):
        labels = tree.first("meta", owner, "labels")
        if labels is not None:
            return list(dict.fromkeys(name for label in labels.all("label") if (name := label.value("name"))))
    return []


def _size(element: Element, path: str) -> tuple[int, int] | None:
    sides = [_attribute(element, side, path, "0") for side in ("height", "width")]
    return (round(sides[0]), round(sides[1])) if min(sides) > 0 else None


def _frame(collector: Collector, pictures: Pictures, tree: Element, shape: Element, path: str) -> Image | None:
    """The image of a frame of a video, which CVAT calls frame_000012."""
    frame = _attribute(shape, "frame", path)
    where = f"line {shape.line}"
    size = tree.first("meta", "task", "original_size")
    sides = (0.0, 0.0)
    if size is not None:
        sides = tuple(number(size.value(side), f"{path}: line {size.line}: {side}") for side in ("height", "width"))
    known = (round(sides[0]), round(sides[1])) if min(sides) > 0 else None
    return image_of(collector, pictures, f"frame_{int(frame):06d}.png", known, f"{path}: {where}", where)


def _attribute(element: Element, name: str, path: str, default: str | None = None) -> float:
    text = element.attributes.get(name, default)
    if text is None:
        raise UserError(f"{path}: line {element.line}: a <{element.tag}> without {name}")
    return number(text, f"{path}: line {element.line}: {name}")


def _add(collector: Collector, image: Image, shape: Element, label: str, path: str) -> None:
    place = f"line {shape.line}"
    if shape.tag == "box":
        x0, y0, x1, y1 = (_attribute(shape, corner, path) for corner in ("xtl", "ytl", "xbr", "ybr"))
        turned = _attribute(shape, "rotation", path, "0")
        if turned % 360:
            collector.notes.add("told: rotated boxes, taken as polygons of their corners", place)
            collector.polygons(image, label, [rotated_corners(x0, y0, x1, y1, turned)], place)
        else:
            collector.box(image, label, (x0, y0, x1, y1), place)
    elif shape.tag == "polygon":
        points = [pair.split(",") for pair in shape.attributes.get("points", "").split(";") if pair.strip()]
        if not all(len(pair) == 2 for pair in points):
            raise UserError(f"{path}: line {shape.line}: points must be x,y;x,y;...")
        where = f"{path}: line {shape.line}: points"
        collector.polygons(image, label, [[number(text.strip(), where) for pair in points for text in pair]], place)
    elif shape.tag == "ellipse":
        x, y, radius_x, radius_y = (_attribute(shape, name, path) for name in ("cx", "cy", "rx", "ry"))
        collector.polygons(image, label, [ellipse(x, y, abs(radius_x), abs(radius_y))], place)
    elif shape.tag == "mask":
        collector.mask(image, label, _mask(shape, image, path), place)
    elif shape.tag in _NO_AREAS:
        collector.notes.add(f"left out: shapes of type {shape.tag}, which are no areas", place)


def rotated_corners(x0: float, y0: float, x1: float, y1: float, degrees: float) -> list[float]:
    """The corners of a box turned clockwise around its center, as a polygon."""
    angle, center = math.radians(degrees), np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - center
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (corners @ turn + center).reshape(-1).tolist()


def _mask(shape: Element, image: Image, path: str) -> np.ndarray:
    """A mask's run lengths, row by row in its box and beginning with what is outside, on the image's pixels."""
    left, top, width, height = (int(_attribute(shape, name, path)) for name in ("left", "top", "width", "height"))
    where = f"{path}: line {shape.line}"
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > image.width or top + height > image.height:
        raise UserError(f"{where}: a mask of {width} x {height} pixels at {left}, {top}, which leaves its image")
    runs = [number(text.strip(), f"{where}: rle") for text in shape.attributes.get("rle", "").split(",") if text.strip()]
    if any(run < 0 or run != int(run) for run in runs) or sum(runs) != width * height:
        raise UserError(f"{where}: rle sums to {sum(runs):g}, but its box has {width} x {height} pixels")
    values = np.arange(len(runs)) % 2
    mask = np.zeros((image.height, image.width), dtype=np.uint8)
    mask[top : top + height, left : left + width] = np.repeat(values, np.array(runs, dtype=np.int64)).reshape(height, width)
    return mask
