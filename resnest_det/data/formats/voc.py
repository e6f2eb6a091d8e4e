"""Pascal VOC: one XML file an image (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, section 3).

Also as Roboflow writes it, whose objects may have a `polygon` with x1, y1, x2, y2, ..., and as LabelMe's web tool did, whose
polygons have points `pt` and whose objects may be `deleted`.
"""

import os
import re
from collections.abc import Iterator

from resnest_det.data.annotation_files import Image
from resnest_det.data.formats.collector import Collector, number
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures, plain, walk
from resnest_det.data.formats.sizes import image_of
from resnest_det.data.formats.text import read_lines
from resnest_det.data.formats.xml_tree import Element, read_xml
from resnest_det.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read a file or the folder of such files; with `files.split` those whose image that text lists.

    Raises:
        UserError: a file is malformed, or has an object without a name or a box of four numbers; names file and line.
    """
    collector = Collector(files, notes)
    wanted = None if files.split is None else {plain(line.split()[0]) for line in read_lines(files.split) if line.strip()}
    trees = [(path, read_xml(path)) for path in xml_files(files.path)]
    if wanted is not None:
        trees = [(path, tree) for path, tree in trees if plain(os.path.splitext(os.path.basename(path))[0]) in wanted]
    first_pixel = _first_pixel([tree for _, tree in trees])
    for path, tree in trees:
        where = os.path.relpath(path, files.path) if path != files.path else path
        if tree.tag != "annotation":
            raise UserError(f"{path}: line {tree.line}: <{tree.tag}>, expected <annotation>: is it a Pascal VOC file?")
        name = tree.value("filename") or os.path.splitext(os.path.basename(path))[0]
        image = image_of(collector, pictures, name, _size(tree, path), path, where, like=os.path.basename(path))
        if image is not None:
            for element in tree.all("object"):
                if element.value("deleted") == "1":
                    notes.add("left out: objects that LabelMe's tool keeps as deleted", f"{where}, line {element.line}")
                    continue
                _add(collector, image, element, f"{where}, line {element.line}", path, first_pixel)
    return collector.labels()


def xml_files(path: str) -> list[str]:
    """The file itself, or the XML files at and below a folder."""
    if os.path.isfile(path):
        return [path]
    return [os.path.join(parent, name) for parent, names in walk(path) for name in names if name.lower().endswith(".xml")]


def _size(tree: Element, path: str) -> tuple[int, int] | None:
    """(height, width), or None where it is absent or 0, as some tools write it."""
    sides = []
    for side, rows in (("height", "nrows"), ("width", "ncols")):
        element = tree.first("size", side) or tree.first("imagesize", rows)
        text = "" if element is None else element.text.strip()
        sides.append(number(text, f"{path}: line {element.line}: {side}") if text else 0.0)
    if min(sides) <= 0:
        return None
    return round(sides[0]), round(sides[1])


def _first_pixel(trees: list[Element]) -> int:
    """1 where coordinates are those of VOC itself, pixels counted from 1; otherwise 0: lines between pixels, as tools write.

    The numbers alone don't tell: LabelImg writes lines between pixels, and 1 for what touches the left or upper border.
    """
    if not any(_names_voc(tree) for tree in trees):
        return 0
    for tree in trees:
        for element in tree.all("object"):
            for corner in ("xmin", "ymin"):
                if re.fullmatch(r"\+?0*(\.0*)?|-.*", element.value("bndbox", corner)):
                    return 0
    return 1


def _names_voc(tree: Element) -> bool:
    sources = [tree.value("source", child) for child in ("database", "annotation")]
    # The devkit's folders; LabelImg puts the name of whatever folder the images are in there.
    return any("voc" in text.lower() for text in sources) or bool(re.fullmatch(r"VOC20(0[5-9]|1[0-2])", tree.value("folder")))


def _add(collector: Collector, image: Image, element: Element, place: str, path: str, first_pixel: int) -> None:
    # "difficult" objects count neither for nor against a detector, as COCO's crowds.
    crowd = element.value("difficult").strip() in ("1", "true", "True")
    if crowd:
        collector.notes.add("told: difficult objects, taken as crowds, which training and AP leave out", place)
    name = element.value("name")
    polygons = [list(_polygon(polygon, path)) for polygon in element.all("polygon")]
    if any(polygons):
        collector.polygons(image, name, polygons, place, crowd=crowd)
        return
    box = element.first("bndbox")
    if box is None:
        raise UserError(f"{path}: line {element.line}: an object without <bndbox>")
    corners = []
    for corner in _CORNERS:
        found = box.first(corner)
        if found is None:
            raise UserError(f"{path}: line {box.line}: a <bndbox> without <{corner}>")
        corners.append(number(found.text.strip(), f"{path}: line {found.line}: {corner}"))
    if first_pixel:
        # The corners are the first and the last pixel; where they are exchanged, they stay so, to be counted.
        x0, y0, x1, y1 = corners
        x0, x1 = (x0 - 1, x1) if x0 - 1 <= x1 else (x0, x1 - 1)
        y0, y1 = (y0 - 1, y1) if y0 - 1 <= y1 else (y0, y1 - 1)
        corners = [x0, y0, x1, y1]
    collector.box(image, name, corners, place, crowd=crowd)


def _polygon(element: Element, path: str) -> Iterator[float]:
    points = list(element.all("pt"))
    for point in points:
        for axis in "xy":
            child = point.first(axis)
            if child is None:
                raise UserError(f"{path}: line {point.line}: a <pt> without <{axis}>")
            yield number(child.text.strip(), f"{path}: line {child.line}: {axis}")
    if points:
        return
    numbers = {child.tag: child for child in element.children}
    for index in range(1, len(numbers) // 2 + 1):
        for axis in "xy":
            child = numbers.get(f"{axis}{index}")
            if child is None:
                raise UserError(f"{path}: line {element.line}: a <polygon> without <{axis}{index}>")
            yield number(child.text.strip(), f"{path}: line {child.line}: {child.tag}")
