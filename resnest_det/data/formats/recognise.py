"""Which format labels are in, by looking at them."""

import csv
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from resnest_det.data.formats.boxes_csv import columns_of
from resnest_det.data.formats.pictures import SUFFIXES, plain, walk
from resnest_det.data.formats.xml_tree import root_tag
from resnest_det.data.formats.yolo import NO_LABELS
from resnest_det.data.json_files import read_bytes
from resnest_det.errors import UserError

# Formats with a file for each image; of the others one file has them all.
PER_IMAGE = ("yolo", "voc", "labelme", "masks")
MASK_FOLDERS = ("masks", "mask", "segmentationobject", "segmentationclass", "pedmasks", "label_masks")
_SPLIT = re.compile(r"(?P<train>train(ing)?)|(?P<val>val(id|idation)?|dev)|(?P<test>test(ing)?)")
# So many files of a folder are looked into; the others are taken for the same.
_LOOKED_INTO = 20


@dataclass(frozen=True)
class Found:
    """A file with labels, or a folder of masks, and its format."""

    kind: str
    path: str


def split_of(path: str, *, with_stem: bool) -> str | None:
    """ "train", "val" or "test" by the folders of a path, the outermost first, and perhaps by the words of the file's name."""
    *folders, last = path.replace(os.sep, "/").split("/")
    for folder in folders:
        found = _SPLIT.fullmatch(re.sub(r"[\W_]*(20\d\d|set)?$", "", plain(folder)))
        if found:
            return _named(found)
    words = re.split(r"[^a-z]+", plain(os.path.splitext(last)[0])) if with_stem else []
    found = [match for match in map(_SPLIT.fullmatch, words) if match]
    return _named(found[0]) if len(found) == 1 else None


def _named(match: re.Match) -> str:
    return next(name for name, text in match.groupdict().items() if text)


def look_at_file(path: str) -> str | None:
    """The format of one file, or None."""
    suffix = os.path.splitext(path)[1].lower()
    return _LOOKS[suffix](path) if suffix in _LOOKS else None


# Of a format that is given, the files it may be in.
_SUFFIX = {"yolo": ".txt", "voc": ".xml", "cvat": ".xml", "csv": ".csv"}


def files_of_kind(folder: str, kind: str) -> list[Found]:
    """The files at and below a folder that are of this format by their suffix alone; of masks the folder itself."""
    if kind == "masks":
        return [Found(kind, folder)]
    suffix = _SUFFIX.get(kind, ".json")
    return [
        Found(kind, os.path.join(parent, name))
        for parent, names in walk(folder)
        for name in names
        if name.lower().endswith(suffix) and name.lower() not in NO_LABELS
    ]


def look_into(folder: str) -> list[Found]:
    """The files with labels at and below a folder, and folders with masks."""
    found: list[Found] = []
    for parent, names in walk(folder):
        looked: dict[str, list[str | None]] = {}
        for name in names:
            path, suffix = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if suffix not in _LOOKS:
                continue
            kinds = looked.setdefault(suffix, [])
            # An empty label file of YOLO says nothing of itself.
            if len(kinds) < _LOOKED_INTO or kinds[-1] is None:
                kinds.append(_LOOKS[suffix](path))
            if kinds[-1] is not None:
                found.append(Found(kinds[-1], path))
        if plain(os.path.basename(parent)) in MASK_FOLDERS and any(
            name.lower().endswith((".png", ".bmp", ".tif")) for name in names
        ):
            found.append(Found("masks", parent))
    return found


def folders_of_images(folder: str) -> list[str]:
    """The folders at and below `folder` that have images, but those of masks."""
    return [
        parent
        for parent, names in walk(folder)
        if plain(os.path.basename(parent)) not in MASK_FOLDERS
        and any(os.path.splitext(name)[1].lower() in SUFFIXES for name in names)
    ]


# As what a key holds that is not there.
_ABSENT = msgspec.Raw(b"null")


class _Keys(msgspec.Struct):
    images: msgspec.Raw = _ABSENT
    annotations: msgspec.Raw = _ABSENT
    categories: msgspec.Raw = _ABSENT
    shapes: msgspec.Raw = _ABSENT


class _Segments(msgspec.Struct):
    segments_info: msgspec.Raw = _ABSENT


class _Task(msgspec.Struct):
    data: msgspec.Raw = _ABSENT
    annotations: msgspec.Raw = _ABSENT
    completions: msgspec.Raw = _ABSENT
    annotation_id: msgspec.Raw = _ABSENT


def _there(raw: msgspec.Raw) -> bool:
    return bytes(raw) != b"null"


def _json(path: str) -> str | None:
    try:
        content = read_bytes(path)
        if content.lstrip()[:1] == b"[":
            task = next(iter(msgspec.json.decode(content, type=list[_Task])), _Task())
            full = _there(task.data) and (_there(task.annotations) or _there(task.completions))
            return "label-studio" if full or _there(task.annotation_id) else None
        keys = msgspec.json.decode(content, type=_Keys)
        if _there(keys.shapes):
            return "labelme"
        if not (_there(keys.images) and _there(keys.categories) and _there(keys.annotations)):
            return None
        try:
            first = next(iter(msgspec.json.decode(keys.annotations, type=list[_Segments])), _Segments())
        except msgspec.MsgspecError:
            return "coco"
        return "panoptic" if _there(first.segments_info) else "coco"
    except (msgspec.MsgspecError, UserError, RecursionError, UnicodeDecodeError):
        # A file of thousands of images that is damaged is told by its reader, not passed over.
        return "coco" if re.search(r"instances|coco", plain(os.path.basename(path))) else None


def _xml(path: str) -> str | None:
    return {"annotation": "voc", "annotations": "cvat"}.get(root_tag(path))


def _txt(path: str) -> str | None:
    if os.path.basename(path).lower() in NO_LABELS:
        return None
    try:
        with open(path, "rb") as file:
            words = next((line.split() for line in file.read(4096).splitlines() if line.strip()), [])
    except OSError:
        return None
    numbers = [re.fullmatch(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) for word in words]
    # A mistake in one of them is for the reader to tell.
    return "yolo" if len(words) >= 5 and numbers[0] and sum(map(bool, numbers[:5])) >= 3 else None


def _yaml(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            text = file.read(2**20)
    except OSError:
        return None
    named = re.search(rb"(?m)^\s*[\"']?(names|nc)[\"']?\s*:", text)
    return "yolo" if named and re.search(rb"(?m)^\s*[\"']?(train|val|path|names)[\"']?\s*:", text) else None


def _csv(path: str) -> str | None:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = next(csv.reader([file.readline(10_000)]), [])
    except (OSError, ValueError, csv.Error):
        return None
    return "csv" if columns_of(first) is not None else None


_LOOKS: dict[str, Callable[[str], str | None]] = {
    ".json": _json,
    ".xml": _xml,
    ".txt": _txt,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".csv": _csv,
}
