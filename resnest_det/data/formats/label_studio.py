"""Label Studio's own exports, JSON and JSON-MIN. Its COCO, YOLO and VOC exports are read as those formats."""

import os
from collections.abc import Iterator

import msgspec
import numpy as np

from resnest_det.data.annotation_files import Image
from resnest_det.data.formats.collector import Collector, number
from resnest_det.data.formats.labelme import ellipse
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import SUFFIXES, Pictures
from resnest_det.data.formats.sizes import image_of
from resnest_det.data.json_files import read_bytes
from resnest_det.errors import UserError, shown

_CLASSES = ("rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "labels")


def read_label_studio(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read an export. Of several people's annotations of an image the last that is not cancelled is taken.

    A rotated rectangle becomes the upright box around it. Regions without a class, points and text are left out.

    Raises:
        UserError: it is no export, or a region lacks a number; names the file, the task and the region.
    """
    try:
        tasks = msgspec.json.decode(read_bytes(files.path))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{files.path}: not an export of Label Studio: {error}") from None
    if not isinstance(tasks, list):
        raise UserError(f"{files.path}: not an export of Label Studio: not a list of tasks; export as JSON or JSON-MIN")
    collector = Collector(files, notes)
    for position, task in enumerate(tasks):
        where = f"task {task['id']}" if isinstance(task, dict) and "id" in task else f"task at position {position}"
        path = f"{files.path}: {where}"
        if not isinstance(task, dict):
            raise UserError(f"{path}: not an object")
        regions = list(_regions(task, notes, where, path))
        size = next((size for region in regions if (size := _size(region, path))), None)
        image = image_of(collector, pictures, _image_name(task, path), size, path, where)
        if image is not None:
            for index, region in enumerate(regions, start=1):
                _add(collector, image, region, f"{where}, region {index}", f"{path}: region {index}")
    return collector.labels()


def _image_name(task: dict, path: str) -> str:
    """The image of a task: the value in its data that is called image, or looks like one."""
    data = task.get("data") if isinstance(task.get("data"), dict) else task
    texts = {str(key): value for key, value in data.items() if isinstance(value, str) and value.strip()}
    named = next((texts[key] for key in ("image", "img", "picture", "photo") if key in texts), None)
    like = (
        text for text in texts.values() if os.path.splitext(text.partition("?")[0])[1].lower() in SUFFIXES or "/data/" in text
    )
    name = named or next(like, None)
    if name is None:
        raise UserError(f"{path}: no image among its data, {shown(sorted(texts))}")
    return name


def _regions(task: dict, notes: Notes, where: str, path: str) -> Iterator[dict]:
    """The regions of a task, each as its value with the size of the image."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):  # JSON-MIN
        for value in task.values():
            if isinstance(value, list):
                yield from (each for each in value if isinstance(each, dict) and _has_class(each))
        return
    done = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    if not done:
        notes.add("told: images that nobody has annotated, taken as images without objects", where)
        return
    if len(done) > 1:
        notes.add("told: images that several people annotated, of whom the last is taken", where)
    results = done[-1].get("result")
    if not isinstance(results, list):
        raise UserError(f"{path}: an annotation without a list of results")
    by_id: dict[str, dict] = {}
    for result in results:
        if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
            continue
        # A shape and its class may be two results of one id.
        region = by_id.setdefault(str(result.get("id", id(result))), {})
        region |= result["value"] | {key: result[key] for key in ("original_width", "original_height") if key in result}
    for region in by_id.values():
        if {"x", "points", "rle"} & set(region):
            yield region


def _has_class(region: dict) -> bool:
    return any(isinstance(region.get(key), list) and region[key] for key in _CLASSES)


def _size(region: dict, path: str) -> tuple[int, int] | None:
    if not (region.get("original_height") and region.get("original_width")):
        return None
    height, width = (number(region[key], f"{path}: {key}") for key in ("original_height", "original_width"))
    return round(height), round(width)


def _add(collector: Collector, image: Image, region: dict, place: str, path: str) -> None:
    names = next((region[key] for key in _CLASSES if isinstance(region.get(key), list) and region[key]), None)
    if names is None:
        collector.notes.add("left out: regions without a class", place)
        return
    if len(names) > 1:
        collector.notes.add("told: regions of several classes, of which the first is taken", place)
    name = str(names[0])

    def value(key: str, default: object = None) -> float:
        return number(region.get(key, default), f"{path}: {key}")

    if "rle" in region:
        collector.mask(image, name, brush(region["rle"], image, path), place)
    elif "points" in region:
        points = region["points"]
        if not isinstance(points, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in points):
            raise UserError(f"{path}: points must be pairs, not {shown(points)}")
        flat = [number(each, f"{path}: points") for pair in points for each in pair]
        polygon = [each / 100 * (image.height if index % 2 else image.width) for index, each in enumerate(flat)]
        collector.polygons(image, name, [polygon], place)
    elif "radiusX" in region:
        x, y, radius_x, radius_y = (value(key) / 100 for key in ("x", "y", "radiusX", "radiusY"))
        outline = ellipse(x * image.width, y * image.height, radius_x * image.width, radius_y * image.height)
        collector.polygons(image, name, [outline], place)
    elif "width" in region and "height" in region:
        x, y, width, height = (value(key) / 100 for key in ("x", "y", "width", "height"))
        corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]) * (image.width, image.height)
        turned = np.radians(value("rotation", 0))
        if turned % (2 * np.pi):
            collector.notes.add("told: rotated boxes, taken as the upright boxes around them", place)
            turn = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
            corners = (corners - corners[0]) @ turn + corners[0]  # around the first corner
        (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        collector.box(image, name, (x0, y0, x1, y1), place)
    else:
        collector.notes.add("left out: regions that are no areas", place)


def brush(rle: object, image: Image, path: str) -> np.ndarray:
    """A brush mask (H, W): which pixels are not transparent.

    The bytes hold bits: 32 with the count of values, 5 with the bits of a value less one, four times 4 with the bits of a length
    less one; then again and again 1 bit that says whether a value is repeated, 2 that choose among the four, a length less one,
    and one value or that many. The values are the image's RGBA, row by row.

    Raises:
        UserError: the bytes are not those of the image's pixels; begins with `path`.
    """
    if not isinstance(rle, list) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in rle):
        raise UserError(f"{path}: rle must be a list of bytes")
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise UserError(f"{path}: rle ends too early")
        at += count
        return int(bits[at - count : at], 2)

    count, size = take(32), take(5) + 1
    if count != image.height * image.width * 4:
        raise UserError(f"{path}: rle has {count} values, but the image {image.width} x {image.height} pixels of four")
    lengths = [take(4) + 1 for _ in range(4)]
    values, done = np.zeros(count, dtype=bool), 0
    while done < count:
        repeated = take(1)
        end = min(done + 1 + take(lengths[take(2)]), count)
        if repeated:
            values[done:end] = take(size) > 0
        else:
            values[done:end] = [take(size) > 0 for _ in range(end - done)]
        done = end
    return (values.reshape(image.height, image.width, 4)[:, :, 3]).astype(np.uint8)
