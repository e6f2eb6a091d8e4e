"""Objects of any format made into one typed document, by the same rules (docs/labels.md has them in a table)."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.data.annotation_files import Category, Image, InstanceFile, RunLengths, check_size, check_text
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes, PlacedAnnotation
from resnest_det.data.formats.pictures import plain
from resnest_det.data.polygons import clip_polygon
from resnest_det.errors import UserError, shown

# Boxes that leave their image by less are those of a tool that rounds.
_ROUNDING = 0.5  # pixels


@dataclass
class _Object:
    image: Image
    name: str
    box: tuple[float, float, float, float]
    segmentation: list[list[float]] | RunLengths | None
    crowd: bool
    place: str


class Collector:
    """Takes images and objects one by one and gives the document.

    Args:
        files: what is read; its `classes` come first and in this order.
        listed: names that the labels list, in the order of their list. None: names are typed with each object.
        notes: where faults are counted.
    """

    def __init__(self, files: LabelFiles, notes: Notes, listed: Sequence[str] | None = None):
        self.files, self.notes = files, notes
        self.listed = None if listed is None else dict.fromkeys(listed)
        self.images: list[Image] = []
        self.objects: list[_Object] = []
        self.asked: dict[str, Image | None] = {}  # by the name that labels have for it; None: there is none
        self._by_name: dict[str, Image] = {}
        self._boxes = self._leaving = 0
        self._first_leaving = ""

    def image(self, name: str, size: tuple[int, int], where: str) -> Image:
        """The image of that name, which may be there already, such as in two label files of one image.

        Raises:
            UserError: its size (height, width) is none, or another than before; the message begins with `where`.
        """
        if name in self._by_name:
            known = self._by_name[name]
            if (known.height, known.width) != tuple(size):
                raise UserError(
                    f"{where}: image {name} is {size[1]} x {size[0]} pixels (width x height), but {known.width} x {known.height} "
                    "before"
                )
            return known
        check_text(name, f"{where}: file_name")
        image = Image(len(self.images) + 1, name, *size)
        check_size(image, where)
        self.images.append(image)
        self._by_name[name] = image
        return image

    def box(self, image: Image, name: str, corners: Sequence[float], place: str, *, crowd: bool = False) -> None:
        """An object of which only the box (x0, y0, x1, y1) in pixels is known.

        Raises:
            UserError: a corner is not finite, or the name is none; the message names the file and `place`.
        """
        x0, y0, x1, y1 = self._finite(corners, place)
        if x0 > x1 or y0 > y1:
            self.notes.add("mended: boxes with exchanged corners", place)
            x0, y0, x1, y1 = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        self._look_at(image, (x0, y0, x1, y1), place)
        inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(image.width)), min(y1, float(image.height))
        if x0 == x1 or y0 == y1 or inside[0] >= inside[2] or inside[1] >= inside[3]:
            self.notes.add("left out: boxes with no area inside their image", place)
            return
        if _leaves(image, (x0, y0, x1, y1), _ROUNDING):
            self.notes.add("mended: boxes clipped to their image", place)
        self._add(image, name, inside, None, crowd, place)

    def polygons(self, image: Image, name: str, polygons: Sequence[Sequence[float]], place: str, *, crowd: bool = False) -> None:
        """An object of polygons [x0, y0, x1, y1, ...] in pixels.

        Raises:
            UserError: see `box`.
        """
        kept = [np.array(self._finite(polygon, place)).reshape(-1, 2) for polygon in polygons if len(polygon) >= 6]
        if not kept:
            self.notes.add("left out: polygons of fewer than three points", place)
            return
        points = np.concatenate(kept)
        around = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        self._look_at(image, around, place)
        if _leaves(image, around, 0):
            kept = [piece for polygon in kept for piece in clip_polygon(polygon, (image.height, image.width))]
            if not kept:
                self.notes.add("left out: polygons with no area inside their image", place)
                return
            if _leaves(image, around, _ROUNDING):
                self.notes.add("mended: polygons clipped to their image", place)
            points = np.concatenate(kept)
            around = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        if around[0] >= around[2] or around[1] >= around[3]:
            self.notes.add("left out: polygons with no area inside their image", place)
            return
        self._add(image, name, around, [polygon.reshape(-1).tolist() for polygon in kept], crowd, place)

    def mask(self, image: Image, name: str, mask: np.ndarray, place: str, *, crowd: bool = False) -> None:
        """An object whose pixels are those of `mask` (H, W) that are not 0."""
        encoded = mask_util.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
        x, y, width, height = mask_util.toBbox(encoded).tolist()
        if not width or not height:
            self.notes.add("left out: masks without a pixel", place)
            return
        self._boxes += 1
        run_lengths = RunLengths([image.height, image.width], encoded["counts"].decode())
        self._add(image, name, (x, y, x + width, y + height), run_lengths, crowd, place)

    def labels(self) -> Labels:
        """The document: classes counted from 1 in their order, annotations too; the same object of an image only once.

        Raises:
            UserError: so many boxes leave their images that they must mean something else, or there are no images.
        """
        if 2 * self._leaving > self._boxes:
            raise UserError(
                f"{self.files.path}: {self._leaving} of {self._boxes} boxes leave their image, the first that of "
                f"{self._first_leaving}; they may be of images of another size, in pixels where fractions of the sides are "
                "meant, or width and height where corners are"
            )
        names = self._names()
        ids = {name: number for number, name in enumerate(names, start=1)}
        annotations, seen = [], set()
        for found in self.objects:
            x0, y0, x1, y1 = found.box
            outline = found.segmentation
            key = (found.image.id, found.name, found.box, outline.counts if isinstance(outline, RunLengths) else str(outline))
            if key in seen:
                self.notes.add("left out: objects that their image has twice", found.place)
                continue
            seen.add(key)
            annotations.append(
                PlacedAnnotation(
                    id=len(annotations) + 1,
                    image_id=found.image.id,
                    category_id=ids[found.name],
                    bbox=(x0, y0, x1 - x0, y1 - y0),
                    iscrowd=int(found.crowd),
                    segmentation=outline,
                    place=found.place,
                )
            )
        categories = [Category(number, name) for name, number in ids.items()]
        content = InstanceFile(self.images, categories, annotations)
        return Labels(self.files, content, self.files.image_root, self.notes, listed=self.listed is not None)

    def _add(self, image: Image, name: str, box, segmentation, crowd: bool, place: str) -> None:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{self.files.path}: {place}: an object without the name of a class")
        if name != name.strip():
            self.notes.add("mended: names of classes with spaces around them", place)
            name = name.strip()
        check_text(name, f"{self.files.path}: {place}: the name of the class")
        if self.listed is not None and name not in self.listed:
            raise UserError(f"{self.files.path}: {place}: class {shown(name)} is not among the {len(self.listed)} listed ones")
        self.objects.append(_Object(image, name, box, segmentation, crowd, place))

    def _finite(self, numbers: Sequence[float], place: str) -> list[float]:
        if not all(math.isfinite(number) and abs(number) < 1e9 for number in numbers):
            raise UserError(f"{self.files.path}: {place}: a coordinate is not a finite number: {shown(list(numbers))}")
        return list(numbers)

    def _look_at(self, image: Image, corners: tuple[float, float, float, float], place: str) -> None:
        self._boxes += 1
        if _leaves(image, corners, max(2.0, 0.01 * min(image.width, image.height))):
            self._leaving += 1
            self._first_leaving = self._first_leaving or place

    def _names(self) -> list[str]:
        """Classes in their order. Of typed names that differ in case or spaces alone the commonest is meant."""
        if self.listed is None:
            counts = Counter(each.name for each in self.objects)
            meant = commonest_spellings(counts, first=self.files.classes)
            for each in self.objects:
                if meant[each.name] != each.name:
                    what = f"mended: objects of class {shown(each.name)}, taken for {shown(meant[each.name])}"
                    self.notes.add(what, each.place)
                    each.name = meant[each.name]
        found = sorted({each.name for each in self.objects}) if self.listed is None else self.listed
        return list(dict.fromkeys((*self.files.classes, *found)))


def commonest_spellings(counts: Counter, first: Sequence[str] = ()) -> dict[str, str]:
    """For each name of a class the one that is meant: of those that differ in case, spaces around them or Unicode form alone the
    one in `first`, or else the commonest.

    Names of a single character are left: "a" and "A" are two letters.
    """
    spellings: dict[str, list[str]] = {}
    for name in sorted((*counts, *first), key=lambda name: (name not in first, -counts[name], name)):
        spellings.setdefault(plain(name) if len(name) > 1 else name, []).append(name)
    return {name: names[0] for names in spellings.values() for name in names}


def _leaves(image: Image, corners: tuple[float, float, float, float], by: float) -> bool:
    x0, y0, x1, y1 = corners
    return x0 < -by or y0 < -by or x1 > image.width + by or y1 > image.height + by


def number(text: object, where: str) -> float:
    """A number as files have it, "12" or "0.5" or 12.

    Raises:
        UserError: it is none; the message begins with `where`.
    """
    # Python also takes "1_000" and digits of other scripts.
    try:
        if isinstance(text, str) and (not text.isascii() or "_" in text):
            raise ValueError
        value = float(text)
        if not math.isfinite(value) or isinstance(text, bool):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} must be a finite number, not {shown(text)}") from None
    return value
