"""A CSV of boxes: a line an object, under whatever names the common tools give the columns."""

import csv
import os
from collections.abc import Sequence

from resnest_det.data.formats.collector import Collector, number
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures, plain
from resnest_det.data.formats.sizes import image_of
from resnest_det.data.formats.text import read_lines
from resnest_det.errors import UserError

# What a column may be called, without case, spaces and "_".
_NAMES = {
    "image": ("filename", "file", "image", "imageid", "imagename", "imagepath", "path", "filepath", "imageuri", "img"),
    "class": ("class", "label", "labelname", "classname", "name", "category", "regionattributes"),
    "x0": ("xmin", "x1", "x0", "left", "xtl"),
    "y0": ("ymin", "y1", "y0", "top", "ytl"),
    "x1": ("xmax", "x2", "right", "xbr"),
    "y1": ("ymax", "y2", "bottom", "ybr"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "bboxwidth", "boxwidth", "bboxw"),
    "h": ("h", "bboxheight", "boxheight", "bboxh"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "split": ("split", "subset", "set", "usage"),
}
_CORNERS, _EXTENT = ("x0", "y0", "x1", "y1"), ("x", "y", "w", "h")
# A file without names of columns: keras-retinanet's path,x1,y1,x2,y2,class.
_WITHOUT_HEADER = {"image": 0, "x0": 1, "y0": 2, "x1": 3, "y1": 4, "class": 5}


def columns_of(first: Sequence[str]) -> dict[str, int] | None:
    """The place of each column that is known, by a file's first line, or None if it is no CSV of boxes."""
    columns: dict[str, int] = {}
    for place, text in enumerate(first):
        word = plain(text).replace("_", "").replace(" ", "")
        meaning = next((meaning for meaning, names in _NAMES.items() if word in names), None)
        if meaning is not None:
            columns.setdefault(meaning, place)
    if not {"x0", "x1"} & set(columns) and {"x", "y", "width", "height"} <= set(columns) and "w" not in columns:
        # Width and height of the box, where x and y are its corner.
        columns["w"], columns["h"] = columns.pop("width"), columns.pop("height")
    if {"image", "class"} <= set(columns) and any(set(box) <= set(columns) for box in (_CORNERS, _EXTENT)):
        return columns
    if len(first) == 6 and all(_is_number(text) for text in first[1:5]) and first[5].strip():
        return _WITHOUT_HEADER
    return None


def _is_number(text: str) -> bool:
    try:
        number(text, "")
    except UserError:
        return False
    return True


def read_csv(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read a CSV; of its column "split", if there is one, the lines of `files.split`.

    A line without a box is an image without objects. Where no coordinate is above 1, they are fractions of the image's sides.

    Raises:
        UserError: it is no CSV of boxes, or a line has no number where one is needed; names file and line.
    """
    rows = _rows(files.path)
    columns = columns_of(rows[0][1]) if rows else None
    if columns is None:
        raise UserError(
            f"{files.path}: its first line must name columns for the image, the class and the corners (filename, class, xmin, "
            "ymin, xmax, ymax, ...) or the corner, width and height of boxes (x, y, w, h)"
        )
    rows = rows if columns is _WITHOUT_HEADER else rows[1:]
    keys = _CORNERS if set(_CORNERS) <= set(columns) else _EXTENT
    parsed = []
    for line, row in rows:
        where = f"{files.path}: line {line}"
        if max(columns[key] for key in ("image", "class", *keys)) >= len(row):
            raise UserError(f"{where}: {len(row)} columns, fewer than the first line has")
        if files.split is not None and split_of_row(row, columns) != files.split:
            continue
        texts = [row[columns[key]].strip() for key in keys]
        values = [number(text, f"{where}: {key}") for key, text in zip(keys, texts)] if any(texts) else None
        parsed.append((line, row, values))
    known = [value for _, _, values in parsed for value in values or ()]
    fractions = bool(known) and max(known) <= 1 and min(known) >= 0 and any(value % 1 for value in known)
    if fractions:
        notes.add("told: boxes in fractions of their images' sides", files.path, len(known) // 4)
    collector = Collector(files, notes)
    for line, row, values in parsed:
        where, name = f"{os.path.basename(files.path)}, line {line}", row[columns["image"]].strip()
        image = image_of(collector, pictures, name, _size(row, columns, files.path, line), f"{files.path}: line {line}", where)
        if image is None or values is None:
            continue
        if keys is _EXTENT:
            values = [values[0], values[1], values[0] + values[2], values[1] + values[3]]
        if fractions:
            values = [value * (image.height if index % 2 else image.width) for index, value in enumerate(values)]
        collector.box(image, row[columns["class"]], values, where)
    return collector.labels()


def _rows(path: str) -> list[tuple[int, list[str]]]:
    """Each line that is not empty, with its number."""
    reader = csv.reader(read_lines(path), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if any(text.strip() for text in row)]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from error


def split_of_row(row: Sequence[str], columns: dict[str, int]) -> str | None:
    """What a line's column "split" says: "train", "val", "test", or None."""
    if "split" not in columns or columns["split"] >= len(row):
        return None
    word = plain(row[columns["split"]])
    return {"training": "train", "valid": "val", "validation": "val", "validate": "val", "testing": "test"}.get(word, word)


def splits_in(path: str) -> list[str]:
    """The splits that the lines of a CSV name in a column."""
    rows = _rows(path)
    columns = columns_of(rows[0][1]) if rows else None
    if not columns or "split" not in columns:
        return []
    return sorted({split for _, row in rows[1:] if (split := split_of_row(row, columns))})


def _size(row: Sequence[str], columns: dict[str, int], path: str, line: int) -> tuple[int, int] | None:
    sides = []
    for side in ("height", "width"):
        text = row[columns[side]].strip() if side in columns and columns[side] < len(row) else ""
        sides.append(number(text, f"{path}: line {line}: {side}") if text else 0)
    return (round(sides[0]), round(sides[1])) if min(sides) > 0 else None
