"""An instance file checked and put into columns, a number of each annotation beside another, as they are packed into a file."""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from resnest_det.data.annotation_files import (
    PARSER_ERRORS,
    Annotation,
    Image,
    InstanceFile,
    ListedAnnotations,
    TextId,
    by_id,
    category_names,
    check_names_differ,
    check_size,
    check_text,
    document_in,
    must_be,
    no_list,
)
from resnest_det.data.outlines import Outlines, check_outlines, slack_of
from resnest_det.data.packed_file import Writer
from resnest_det.errors import UserError

# Annotations that are parsed together: they take some 50 MB.
_AT_ONCE = 20_000
_FIELDS = attrgetter("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")
NO_IMAGE = "annotations of images that are not listed"
NO_AREA = "boxes with no area inside their image"
NO_POINTS = "objects whose polygons have fewer than three points"


def pack_instances(json_file: str) -> Callable[[bytes, Writer], None]:
    """What packs the bytes of an instance file, for `resnest_det.data.dataset_cache.packed`.

    Raises:
        UserError (when called): see `resnest_det.data.coco.load_coco_instances`.
    """

    def pack(content: bytes, out: Writer) -> None:
        try:
            listed = msgspec.json.decode(content, type=ListedAnnotations, strict=False)
            parsed = None if listed.annotations is None else _parsed(listed.annotations)
            columns = _Columns(listed.images, listed.categories, parsed, json_file, out)
        except PARSER_ERRORS:
            pack_document(document_in(content, InstanceFile, json_file), json_file, out.restarted())
        else:
            columns.finish()

    return pack


def pack_document(content: InstanceFile, json_file: str, out: Writer, about: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Pack a file's content.

    Args:
        about: what else is to be known.
        json_file: what messages call the file; of labels in another format that file, or their folder.

    Raises:
        UserError: see `resnest_det.data.coco.load_coco_instances`.
    """
    annotations = content.annotations
    chunks = None if annotations is None else (annotations[at : at + _AT_ONCE] for at in range(0, len(annotations), _AT_ONCE))
    _Columns(content.images, content.categories, chunks, json_file, out).finish(about)


def _parsed(annotations: list[msgspec.Raw]) -> Iterator[list[Annotation]]:
    decoder = msgspec.json.Decoder(list[Annotation], strict=False)
    for start in range(0, len(annotations), _AT_ONCE):
        yield decoder.decode(b"[" + b",".join(annotations[start : start + _AT_ONCE]) + b"]")


class _Columns:
    def __init__(
        self,
        images: list[Image],
        categories: Sequence,
        annotations: Iterable[list[Annotation]] | None,
        json_file: str,
        out: Writer,
    ):
        self._file, self._out = json_file, out
        by_ids = by_id(categories, "category", json_file)
        if not by_ids and annotations is None:
            raise no_list(json_file, "annotations", InstanceFile)
        if not by_ids:
            raise UserError(f'{json_file}: the list "categories" is empty')
        self.names = category_names(by_ids, json_file)
        check_names_differ(self.names, json_file)
        self._class_of = {category_id: index for index, category_id in enumerate(self.names)}
        self.images = [image for _, image in sorted(by_id(images, "image", json_file).items())]
        for image in self.images:
            check_image(image, f"{json_file}: image {image.id}")
        self._image_of = {image.id: index for index, image in enumerate(self.images)}
        self._sides = np.array([(image.width, image.height) for image in self.images], dtype=np.int64).reshape(-1, 2)

        self.left_out: dict[str, list] = {}
        self.annotated = annotations is not None
        self._parts: dict[str, list[np.ndarray]] = defaultdict(list)
        self._ids: list[tuple[int, ...]] = []
        self._placed: list[list[Annotation]] = []  # what messages call by more than their ids
        self._wrong_outline: UserError | None = None
        for chunk in annotations or ():
            self._add(chunk)

    def _add(self, annotations: list[Annotation]) -> None:
        if not annotations:
            return
        if type(annotations[0]) is not Annotation:
            self._placed.append(annotations)
        ids, its_images, its_classes, boxes, areas, crowds, ignored = zip(*map(_FIELDS, annotations))
        self._ids.append(ids)
        labels = np.array([self._class_of.get(each, -1) for each in its_classes], dtype=np.int32)
        boxes = np.fromiter(chain.from_iterable(boxes), dtype=np.float64, count=4 * len(ids)).reshape(-1, 4)
        has_area = np.array([area is not None for area in areas])
        areas = np.array([0 if area is None else area for area in areas], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(boxes.sum(axis=1)).all()
        right = finite and labels.min() >= 0 and ((areas >= 0) & (areas <= 1e10)).all()
        if not right or any(ignored) or not set(crowds) <= {None, 0, 1}:
            for annotation in annotations:
                _check_fields(annotation, self._class_of, f"{self._file}: {annotation.called()}")
        areas[~has_area] = np.nan
        of_image = np.array([self._image_of.get(each, -1) for each in its_images], dtype=np.int32)
        listed = of_image >= 0
        sides = self._sides[of_image] if len(self._sides) else np.ones((len(ids), 2), dtype=np.int64)
        inside = listed & _inside(boxes, sides)
        # What lies in no image cannot be held against its sides.
        known = annotations if listed.all() else [annotation for annotation, has_one in zip(annotations, listed) if has_one]
        pointless = np.zeros(len(ids), dtype=bool)
        try:
            outlines = check_outlines(known, sides[listed], inside[listed], self._file)
        except UserError as error:
            # Told at the end: if boxes are wrong everywhere, that says more.
            self._wrong_outline = self._wrong_outline or error
        else:
            pointless[listed] = outlines.pointless
            self._write(outlines)
        for what, which in ((NO_IMAGE, ~listed), (NO_AREA, listed & ~inside), (NO_POINTS, inside & pointless)):
            if which.any():
                self.left_out.setdefault(what, [0, annotations[int(which.argmax())].called()])[0] += int(which.sum())
        part = {"image": of_image, "label": labels, "box": boxes, "area": areas}
        part |= {"crowd": np.array(crowds, dtype=bool).astype(np.uint8), "trained": (inside & ~pointless).astype(np.uint8)}
        self._parts["listed"].append(listed)
        for name, values in part.items():
            self._parts[name].append(values[listed])

    def _write(self, outlines: Outlines) -> None:
        """Coordinates of all polygons, then run lengths, and where of the block those of each annotation are."""
        owner = np.repeat(np.arange(len(outlines.polygons)), outlines.polygons)
        points = np.bincount(owner, weights=outlines.points, minlength=len(outlines.polygons)).astype(np.int64)
        sizes = 16 * points
        starts = self._out.length + np.cumsum(sizes) - sizes
        coordinates = outlines.coordinates.tobytes()
        end = self._out.length + len(coordinates)
        for at, counts in outlines.run_lengths.items():
            starts[at], sizes[at] = end, len(counts)
            end += len(counts)
        block = memoryview(coordinates + b"".join(outlines.run_lengths.values()))
        ends = starts + sizes - self._out.length
        checksums = [
            zlib.crc32(block[start:end]) for start, end in zip((starts - self._out.length).tolist(), ends.tolist(), strict=True)
        ]
        self._out.append(block)
        self._parts["start"].append(starts)
        self._parts["bytes"].append(sizes.astype(np.int32))
        self._parts["checksum"].append(np.array(checksums, dtype=np.uint32))
        self._parts["polygons"].append(outlines.polygons)
        self._parts["points"].append(outlines.points)

    def finish(self, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Make the checks that need all annotations, and write the columns and what `more` is to be known."""
        kinds = {"points": np.int32, "start": np.int64, "bytes": np.int32, "checksum": np.uint32, "polygons": np.int32}
        kinds |= {"image": np.int32, "label": np.int32, "area": np.float64, "crowd": np.uint8, "trained": np.uint8}
        columns = {name: np.concatenate([*self._parts[name], np.zeros(0, dtype)]) for name, dtype in kinds.items()}
        columns["box"] = np.concatenate([*self._parts["box"], np.zeros((0, 4))])
        listed = np.concatenate([*self._parts["listed"], np.zeros(0, dtype=bool)])
        ids = [number for part in self._ids for number in part]
        self._check_ids(ids)
        sides = self._sides[columns["image"]] if len(self._sides) else np.zeros((0, 2), dtype=np.int64)
        _check_boxes(columns["box"], sides, self._file, lambda at: self._called(ids, int(np.flatnonzero(listed)[at])))
        if self._wrong_outline is not None:
            raise self._wrong_outline
        trained = np.flatnonzero(columns["trained"])
        its_image = columns["image"][trained]
        columns["order"] = trained[np.argsort(its_image, kind="stable")].astype(np.int32)
        columns["first"] = np.searchsorted(its_image[np.argsort(its_image, kind="stable")], np.arange(len(self.images) + 1))
        columns["first"] = columns["first"].astype(np.int32)
        columns["first_polygon"] = np.concatenate([[0], np.cumsum(columns["polygons"])])[: len(columns["polygons"])]
        columns["first_polygon"] = columns["first_polygon"].astype(np.int32)
        columns["sides"] = self._sides.astype(np.int32)
        files = [str(image.file_name) for image in self.images]
        columns["file_names"], columns["file_name_end"] = packed_names(files)
        twice = [name for name, count in Counter(files).items() if count > 1]
        about: dict[str, Any] = dict(more) | {
            "categories": [[ids_of([number])[0], name] for number, name in self.names.items()],
            "annotated": self.annotated,
            "left_out": self.left_out,
            "listed_twice": [len(twice), twice[0]] if twice else None,
        }
        del files
        if listed.all():
            kept = ids
        else:
            kept = [number for number, is_listed in zip(ids, listed.tolist()) if is_listed]
        for name, numbers in (("id", kept), ("image_id", [image.id for image in self.images])):
            column = whole_numbers(numbers)
            if column is None:
                about[name] = ids_of(numbers)
            else:
                columns[name] = column
        self._out.finish(columns, about)

    def _called(self, ids: list[int], position: int) -> str:
        if self._placed:
            return self._placed[position // _AT_ONCE][position % _AT_ONCE].called()
        return f"annotation {ids[position]}"

    def _check_ids(self, ids: list[int]) -> None:
        numbers = whole_numbers(ids)
        if len(set(ids) if numbers is None else np.unique(numbers)) < len(ids):
            seen: set[int] = set()
            twice = next(number for number in ids if number in seen or seen.add(number))
            raise UserError(f"{self._file}: annotation id {twice} occurs more than once")


def whole_numbers(ids: list[int]) -> np.ndarray | None:
    """Ids as (N,) int64, or None where they do not fit or are text."""
    if not set(map(type, ids)) <= {int}:
        return None
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        return None


def packed_names(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names behind each other as bytes (B,) uint8, and where each ends, (N,) int64. `names_from` is the way back."""
    encoded = [name.encode() for name in names]
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum([len(name) for name in encoded], dtype=np.int64)


def names_from(packed: np.ndarray, ends: np.ndarray) -> list[str]:
    """What `packed_names` was given."""
    whole, ends = packed.tobytes(), ends.tolist()
    return [whole[start:end].decode() for start, end in zip([0, *ends], ends)]


def ids_of(ids: list[int]) -> list[str | list[str]]:
    """Ids of any size as JSON takes them: their digits, or digits and text of a `TextId`. `ids_from` is the way back."""
    return [[str(int(number)), number.text] if isinstance(number, TextId) else str(number) for number in ids]


def ids_from(written: list[str | list[str]]) -> list[int]:
    """What `ids_of` was given."""
    return [int(each) if isinstance(each, str) else TextId(int(each[0]), each[1]) for each in written]


def check_image(image: Image, where: str) -> None:
    """That an entry of "images" can be one.

    Raises:
        UserError: a side cannot be that of an image, or the file's name has control characters; the message begins with `where`.
    """
    check_size(image, where)
    check_text(str(image.file_name), f"{where}: file_name")


def _check_fields(annotation: Annotation, contiguous: dict[int, int], where: str) -> None:
    if annotation.category_id not in contiguous:
        raise UserError(f'{where}: category id {annotation.category_id} is not in the list "categories"')
    if not math.isfinite(sum(annotation.bbox)):
        raise UserError(f"{where}: {must_be('bbox', list(annotation.bbox))}")
    if annotation.area is not None and not 0 <= annotation.area <= 1e10:
        raise UserError(f"{where}: {must_be('area', annotation.area)}")
    if annotation.iscrowd not in (None, 0, 1):
        raise UserError(f"{where}: {must_be('iscrowd', annotation.iscrowd)}")
    if annotation.ignore:
        raise UserError(f'{where}: "ignore" is not supported; mark regions to be ignored with "iscrowd": 1')


def _inside(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Which boxes (N, 4) have an area inside their image of these sides (N, 2), width and height; (N,) bool."""
    start, extent = boxes[:, :2], boxes[:, 2:]
    # Written so that no rounding of x + width can make a thin box look empty.
    return ((extent > 0) & (start < sides) & (extent > -start)).all(axis=1)


def _check_boxes(boxes: np.ndarray, sides: np.ndarray, json_file: str, called: Callable[[int], str]) -> None:
    """That not so many boxes lie elsewhere than their image that they must mean something else.

    Raises:
        UserError: they do.
    """
    sides = sides.astype(np.float64)
    start, extent = boxes[:, :2], boxes[:, 2:]
    borders = sides + slack_of(sides)
    leaving = (extent > 0).all(axis=1) & ((start < sides - borders) | (start + extent > borders)).any(axis=1)
    relative = (np.abs(boxes) <= 1).all(axis=1) & (sides > 2).all(axis=1) & (extent > 0).all(axis=1)
    for wrong, what in ((relative, "are of a pixel at most"), (leaving, "leave their image")):
        if 2 * wrong.sum() <= len(boxes):
            continue
        corners = leaving & (extent > start).all(axis=1) & (extent <= borders).all(axis=1)
        if wrong is relative:
            meant = "fractions of the image's sides; multiply them by width and height"
        elif corners.sum() == leaving.sum():
            meant = "corners x0, y0, x1, y1; write width and height in the place of x1 and y1"
        else:
            meant = "of images of another size, or width and height of the images are exchanged"
        first = int(np.flatnonzero(wrong)[0])
        width, height = sides[first].astype(int).tolist()
        raise UserError(
            f"{json_file}: {wrong.sum()} of {len(boxes)} boxes [x, y, width, height] {what}, the first that of "
            f"{called(first)}, {boxes[first].tolist()} in an image of {width} x {height} pixels (width x height); they may be "
            f"{meant}"
        )
