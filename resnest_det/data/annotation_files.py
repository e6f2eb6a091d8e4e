"""Annotation files as typed documents: the one place where their JSON becomes numbers and names.

A number may be written as text ("12", "0.5"), a whole number as a float (640.0); null means an absent key; everything else
that is not of its type is refused with the file, the entry and the field (docs/data.md has the rules in one table).
"""

import contextlib
import gc
import logging
import math
import re
import unicodedata
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any, TypeVar

import msgspec

from resnest_det.data.json_files import parse_json, read_bytes
from resnest_det.errors import UserError, shown

logger = logging.getLogger(__name__)

# COCO's run lengths have room for the pixels of no larger image, and outlines in such an image fit into memory.
MAX_SIDE, MAX_PIXELS = 1_000_000, 2**29
MOST_OF_A_NAME = 1000  # characters

# What a field must be, as the error says it.
_RULES = {
    "id": "an integer",
    "image_id": "an integer",
    "category_id": "an integer",
    "file_name": "text",
    "height": f"a positive integer up to {MAX_SIDE}",
    "width": f"a positive integer up to {MAX_SIDE}",
    "bbox": "four finite numbers [x, y, width, height]",
    "area": "a number of pixels from 0 to 1e10",
    "iscrowd": "0 or 1",
    "ignore": "0 or absent",
    "segmentation": "a list of polygons [[x0, y0, x1, y1, ...], ...] or a run-length dict",
    "size": "[height, width] of the image",
    "counts": "a string of COCO's encoding or a list of whole numbers",
    "name": "text",
    "isthing": "0 or 1",
    "color": "three whole numbers from 0 to 255",
    "segments_info": "a list of objects",
}


class TextId(int):
    """A number in the place of an id that is text in the file: equal to the number, and shown as the text."""

    def __new__(cls, number: int, text: str = ""):
        made = super().__new__(cls, number)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text


class Image(msgspec.Struct, gc=False):
    """An entry of "images"; sides in pixels."""

    id: int
    file_name: str | int
    height: int
    width: int


class RunLengths(msgspec.Struct, gc=False):
    """A mask as COCO's run lengths, compressed or not; `size` is (height, width)."""

    size: list[int]
    counts: str | list[int]


class Annotation(msgspec.Struct, gc=False):
    """An entry of "annotations"; box (x, y, width, height) in pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool | int | None = None
    ignore: bool | float | None = None
    # `resnest_det.data.outlines.check_outlines` puts pycocotools' dict of compressed run lengths in the place of run lengths.
    segmentation: list[list[float]] | RunLengths | None = None

    def called(self) -> str:
        """What messages call it."""
        return f"annotation {self.id}"


class Category(msgspec.Struct, gc=False):
    """An entry of "categories"."""

    id: int
    name: str | int | float | None


class InstanceFile(msgspec.Struct):
    """COCO's instance format; `annotations` is None in a file that only lists images, such as that of COCO's test images."""

    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation] | None = None


class PanopticCategory(Category, gc=False, omit_defaults=True):
    """An entry of "categories" in a panoptic file."""

    isthing: int
    color: tuple[int, int, int] | None = None


class Segment(msgspec.Struct, gc=False):
    """An entry of "segments_info"."""

    id: int
    category_id: int
    iscrowd: bool | int | None = None
    area: float | None = None


class PanopticAnnotation(msgspec.Struct, gc=False):
    """An entry of "annotations" in a panoptic file."""

    image_id: int
    file_name: str | int
    segments_info: list[Segment]


class PanopticFile(msgspec.Struct):
    """COCO's panoptic format."""

    images: list[Image]
    categories: list[PanopticCategory]
    annotations: list[PanopticAnnotation]


class ListedAnnotations(msgspec.Struct):
    """An instance file whose annotations are not parsed yet: all of them at once take six times the memory of their text."""

    images: list[Image]
    categories: list[Category]
    annotations: list[msgspec.Raw] | None = None


# What the parser raises at a file that it does not take.
PARSER_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_Document = TypeVar("_Document", InstanceFile, PanopticFile)
_LISTS = {
    InstanceFile: {"images": Image, "categories": Category, "annotations": Annotation},
    PanopticFile: {"images": Image, "categories": PanopticCategory, "annotations": PanopticAnnotation},
}
# The fields that refer to the ids of a list.
_REFERENCES = {"images": "image_id", "categories": "category_id", "annotations": ""}
_DIGITS = re.compile(r"[-+]?[0-9]{1,400}")
# Text that is neither a number nor can name an entry: a fraction, blanks, control characters, too much.
_NO_ID = re.compile(rf"[-+]?\d*\.\d*|\s*|.*[\x00-\x1f\x7f-\x9f\ud800-\udfff].*|.{{{MOST_OF_A_NAME},}}", re.DOTALL)
# What messages call an entry, and the key of the id that they name it by.
_CALLED = {
    Image: ("image", "id"),
    Annotation: ("annotation", "id"),
    Category: ("category", "id"),
    PanopticCategory: ("category", "id"),
    PanopticAnnotation: ("image", "image_id"),
}


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Python's collector of cycles off: it would look through a file's millions of lists, which have none, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_annotation_file(json_file: str, kind: type[_Document]) -> _Document:
    """Read a file as a document of `kind`, plain or compressed with gzip.

    Raises:
        UserError: it cannot be read, is not JSON, lacks a list, or has a wrong entry; names file, entry and field.
    """
    return document_from(read_bytes(json_file), kind, json_file)


def document_from(content: bytes, kind: type[_Document], json_file: str) -> _Document:
    """The document in the bytes of a file.

    Raises:
        UserError: see `read_annotation_file`.
    """
    # The parser checks types as it goes, but its errors name no ids, and it does not know the NaN that Python writes. Whatever it
    # does not take is read again in a way that tells.
    try:
        return msgspec.json.decode(content, type=kind, strict=False)
    except PARSER_ERRORS:
        return document_in(content, kind, json_file)


def document_in(content: bytes, kind: type[_Document], json_file: str) -> _Document:
    """The document in the bytes of a file, in five times the parser's time: told are the entry and the field that are wrong.

    Raises:
        UserError: see `read_annotation_file`.
    """
    return document_of(parse_json(content, json_file), kind, json_file)


def document_of(raw: dict, kind: type[_Document], json_file: str) -> _Document:
    """A document of `kind` from the parsed JSON of a file, entry by entry.

    Raises:
        UserError: it lacks a list, or has a wrong entry; names file, entry and field.
    """
    _number_text_ids(raw, kind, json_file)
    lists = {}
    for name, entry_type in _LISTS[kind].items():
        entries = raw.get(name)
        if entries is None and kind is InstanceFile and name == "annotations":
            continue
        if not isinstance(entries, list):
            raise no_list(json_file, name, kind)
        lists[name] = [_entry(entry, entry_type, position, json_file) for position, entry in enumerate(entries)]
    return kind(**lists)


def _number_text_ids(raw: dict, kind: type, json_file: str) -> None:
    """Put a `TextId` in the place of each id that is text and no number, such as a UUID, and wherever entries refer to it."""
    objects = {
        name: [each for each in raw[name] if isinstance(each, dict)] for name in _LISTS[kind] if isinstance(raw.get(name), list)
    }
    for name, entries in objects.items():
        ids = [each.get("id") for each in entries] if "id" in _LISTS[kind][name].__struct_fields__ else []
        texts = sorted({each for each in ids if isinstance(each, str) and _whole(each) is None and not _NO_ID.fullmatch(each)})
        if texts:
            logger.info(
                "%s: ids of %s are text, such as %s: sorted as text, and kept in results", json_file, name, shown(texts[0])
            )
        first = 1 + max((number for each in ids if (number := _whole(each)) is not None), default=0)
        made = {text: TextId(number, text) for number, text in enumerate(texts, start=first)}
        referring = [*objects.get("annotations", ())]
        for each in objects.get("annotations", ()):
            segments = each.get("segments_info")
            referring += [part for part in segments if isinstance(part, dict)] if isinstance(segments, list) else []
        for each, field in chain(zip(entries, repeat("id")), zip(referring, repeat(_REFERENCES[name]))):
            if isinstance(each.get(field), str):
                number = _whole(each[field])
                each[field] = made.get(each[field], each[field]) if number is None else number


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)  # 000000000139, too
    with contextlib.suppress(msgspec.ValidationError, UnicodeEncodeError):
        return msgspec.convert(value, int, strict=False)
    return None


def no_list(json_file: str, name: str, kind: type) -> UserError:
    """The error about a file of `kind` without the list of that name."""
    what = "instance" if kind is InstanceFile else "panoptic"
    return UserError(f'{json_file}: no list "{name}"; is it a COCO {what} annotation file?')


def _entry(raw: Any, kind: type, position: int, json_file: str):
    try:
        return _with_text_ids(msgspec.convert(raw, kind, strict=False), raw)
    except (msgspec.ValidationError, RecursionError, UnicodeEncodeError) as error:
        called, key = _CALLED[kind]
        own_id = raw.get(key) if isinstance(raw, dict) else None
        number = _whole(own_id)
        known = f"position {position}" if number is None else own_id if isinstance(own_id, TextId) else number
        where = f"{json_file}: {called} {'at ' if number is None else ''}{known}"
        if isinstance(error, UnicodeEncodeError):
            raise UserError(f"{where}: has text of broken Unicode, half a surrogate pair") from None
        raise UserError(f"{where}: {_problem(raw, str(error))}") from None


def _with_text_ids(entry, raw: dict):
    for field in ("id", "image_id", "category_id"):
        if isinstance(raw.get(field), TextId):
            setattr(entry, field, raw[field])
    for segment, its_raw in zip(getattr(entry, "segments_info", ()), raw.get("segments_info") or ()):
        _with_text_ids(segment, its_raw)
    return entry


def _problem(raw: Any, error: str) -> str:
    """What is wrong with an entry, from msgspec's "Expected `int`, got `str` - at `$.bbox[0]`"."""
    message, _, path = error.partition(" - at `$")
    steps = re.findall(r"\w+", path)
    absent = re.search(r"missing required field `(\w+)`", message)
    value = raw
    for step in steps:
        value = value[int(step) if isinstance(value, (list, tuple)) else step]
    names = [step for step in steps if not step.isdigit()]
    if absent or (names and value is None and path.strip("`.") == "".join(names[-1:])):
        return (
            "".join(f"{name}: " for name in (names if absent else [])) + f'the key "{(absent or [0, names[-1]])[1]}" is missing'
        )
    if not names:
        return "not an object"
    field = names[-1]
    at = path.strip("`.")
    inside = f"{at.rpartition('.' + field)[0]}: " if len(names) > 1 else ""
    index = at.rpartition(field)[2]
    whole = raw.get(field) if len(names) == 1 else value
    if field == "segmentation":
        found = f"but {at} is {shown(value)}" if index else f"not {type(value).__name__}"
    else:
        found = f"not {shown(whole)}"
    return f"{inside}{field} must be {_RULES[field]}, {found}"


def must_be(field: str, value: Any) -> str:
    """The end of an error about a field's value."""
    return f"{field} must be {_RULES[field]}, not {shown(value)}"


def by_id(entries: list, kind: str, json_file: str) -> dict[int, Any]:
    """Typed entries of a list ("image", "category", ...) by their ids.

    Raises:
        UserError: one has the id of another.
    """
    result = {entry.id: entry for entry in entries}
    if len(result) < len(entries):
        seen: set[int] = set()
        twice = next(entry.id for entry in entries if entry.id in seen or seen.add(entry.id))
        raise UserError(f"{json_file}: {kind} id {twice} occurs more than once")
    return result


def category_names(categories: dict[int, Category], json_file: str) -> dict[int, str]:
    """Names of categories by their ids: text, or a number, which becomes text.

    Raises:
        UserError: a name is absent, something else, that of another category, or has a control character, a line break or half a
            surrogate pair. Such names break terminals, logs and the files of other tools that they are written to.
    """
    names: dict[int, str] = {}
    for category_id in sorted(categories):
        name, where = categories[category_id].name, f"{json_file}: category {category_id}"
        if isinstance(name, int) or (isinstance(name, float) and math.isfinite(name)):
            name = str(name)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: the {must_be('name', name)}")
        check_text(name, f"{where}: the name")
        names[category_id] = name
    return names


def check_text(text: str, where: str) -> None:
    """That a name has no control character, line break or half of a surrogate pair, and at most `MOST_OF_A_NAME` characters.

    Raises:
        UserError: it has; the message begins with `where`.
    """
    if len(text) <= MOST_OF_A_NAME and text.isascii() and text.isprintable():
        return  # nearly all, in a tenth of the time
    if len(text) > MOST_OF_A_NAME:
        raise UserError(f"{where} {ascii(text)[:80]} has {len(text)} characters; supported: up to {MOST_OF_A_NAME}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise UserError(f"{where} {ascii(text)[:80]} has a control character, a line break or broken Unicode in it")


def check_names_differ(names: dict[int, str], json_file: str) -> None:
    """That no two categories, given by id, have one name: classes are told apart by it.

    Raises:
        UserError: two have.
    """
    ids: dict[str, int] = {}
    for category_id, name in names.items():
        if ids.setdefault(name, category_id) != category_id:
            raise UserError(
                f"{json_file}: categories {ids[name]} and {category_id} are both named {shown(name)}; remove one if it is "
                "unused, or give them names of their own"
            )


def check_size(image: Image, where: str) -> None:
    """That the sides of an image can be those of an image.

    Raises:
        UserError: they cannot; the message begins with `where`.
    """
    for field in ("height", "width"):
        side = getattr(image, field)
        if not 0 < side <= MAX_SIDE:
            raise UserError(f"{where}: {must_be(field, side)}")
    if image.height * image.width >= MAX_PIXELS:
        raise UserError(
            f"{where}: {image.width} x {image.height} (width x height) are more pixels than COCO's run lengths can count"
        )
