"""Images that belong to one class each: class folders, as ImageNet's, and Hugging Face's image folders with metadata."""

import csv
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from resnest_det.data.loader import PackedRecords
from resnest_det.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".jp2", ".avif")
# What the folders of a split are called, ImageNet's first, then those that Hugging Face's `datasets` looks for.
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "dev", "test", "testing", "eval", "evaluation")}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAMES_SHOWN = 10


class _Labelled(TypedDict):
    file_name: str
    label: int


class LabelledRecord(_Labelled, total=False):
    """An image and the index of its class; `offset` and `size` in bytes where it lies inside the tar file `shard`."""

    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class ClassImages:
    """Images of one split.

    Attributes:
        name: what it is called in messages.
        classes: names, in the order of the labels.
        records: a `LabelledRecord` each.
        labels: (N,) int64, of the same.
        shards: (N,) int64, the number of the tar file that each is in; None for files of their own.
    """

    name: str
    classes: tuple[str, ...]
    records: PackedRecords
    labels: np.ndarray
    shards: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


def read_class_folders(folder: str, val: str = "", held_out: float = 0.1) -> tuple[ClassImages, ClassImages]:
    """The training and the validation images of a folder: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg.

    A split may have its labels in Hugging Face's metadata.csv or metadata.jsonl instead (`file_name` and `label`).

    Args:
        val: another folder of class folders to validate on.
        held_out: the share of each class to validate on where neither is there. Which images these are depends on their names
            alone.

    Raises:
        UserError: a folder is absent, has no classes, an empty one, or the two have other classes.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    train = find_split(root, "train")
    if train is None and (only := find_split(root, "val")) is not None and not val:
        raise UserError(f"{folder} has {only.name} and no train: the images to train on are missing")
    found = _files_of_classes(train or root)
    other = Path(val).expanduser() if val else find_split(root, "val") if train else None
    if other is None:
        kept, out = _hold_out(found, held_out, train or root)
        return _as_images(str(train or root), kept), _as_images(f"{held_out:g} of each class of {train or root}", out)
    if not other.is_dir():
        raise UserError(f"{other}: no such folder of images")
    validation = _files_of_classes(find_split(other, "val") or other)
    check_same_classes(tuple(found), str(train or root), tuple(validation), str(other))
    return _as_images(str(train or root), found), _as_images(str(other), {name: validation[name] for name in found})


def read_split(folder: str) -> ClassImages:
    """The images of one folder of class folders: of DIR/val where there is one, or of DIR itself.

    Raises:
        UserError: see `read_class_folders`.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    chosen = find_split(root, "val") or root
    return _as_images(str(chosen), _files_of_classes(chosen))


def find_split(root: Path, split: str) -> Path | None:
    """The folder of a split below `root`, under any of its usual names; None if there is none.

    A class may be called so as well, such as "train" beside "bus": a split has folders or metadata inside.
    """
    below = {entry.name.lower(): Path(entry.path) for entry in os.scandir(root) if entry.is_dir()}
    return next((below[name] for name in SPLITS[split] if name in below and _is_split(below[name])), None)


def _is_split(folder: Path) -> bool:
    return any(path.is_dir() or path.name in _METADATA for path in folder.iterdir())


def check_same_classes(classes: Sequence[str], where: str, others: Sequence[str], there: str) -> None:
    """That two splits have the same classes.

    Raises:
        UserError: one has some that the other lacks; they are listed.
    """
    texts = []
    for only, place in ((set(classes) - set(others), where), (set(others) - set(classes), there)):
        if only:
            texts.append(f"only {place} has {listed(sorted(only))}")
    if texts:
        raise UserError(f"the classes of {where} and {there} are not the same: {'; '.join(texts)}")


def listed(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _files_of_classes(folder: Path) -> dict[str, list[str]]:
    """Class to its files, classes and files in alphabetical order."""
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    if metadata:
        return _from_metadata(metadata[0])
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    found = {name: sorted(_images_below(folder / name)) for name in classes}
    if not any(found.values()):
        raise UserError(
            f"{folder} has no class folders with images; expected {folder}/CLASS/*.jpg, {folder}/train/CLASS/*.jpg and "
            f"{folder}/val/CLASS/*.jpg, or a metadata.csv with file_name and label"
        )
    if empty := [name for name, files in found.items() if not files]:
        raise UserError(f"{folder}: {len(empty)} of {len(found)} classes have no image: {listed(empty)}")
    return found


def _images_below(folder: Path) -> Iterator[str]:
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (os.path.join(where, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))


def _from_metadata(path: Path) -> dict[str, list[str]]:
    if path.suffix == ".parquet":
        raise UserError(f"{path}: metadata as CSV or JSON lines can be read; save it as metadata.csv")
    found: dict[str, list[str]] = {}
    for number, row in enumerate(_rows(path), start=1):
        name, label = (row.get(key) for key in ("file_name", "label"))
        if not isinstance(name, str) or not name or not isinstance(label, (str, int)) or label == "":
            raise UserError(f"{path}: row {number} lacks file_name or label")
        file = os.path.normpath(path.parent / name)
        if not os.path.isfile(file):
            raise UserError(f"{path}: row {number}: {name} does not exist in {path.parent}")
        found.setdefault(str(label), []).append(file)
    if not found:
        raise UserError(f"{path} has no rows")
    numbered = all(name.isdecimal() for name in found)
    return {name: sorted(found[name]) for name in sorted(found, key=int if numbered else str)}


def _rows(path: Path) -> Iterator[dict]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for line in filter(str.strip, file):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is not an object")
                yield row
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _hold_out(found: dict[str, list[str]], share: float, root: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Of each class its `share`, one at least, and the rest."""
    if short := [name for name, files in found.items() if len(files) < 2]:
        raise UserError(f"{root}: nothing of {listed(short)} could be held out to validate on: they have one image")
    kept, out = {}, {}
    for name, files in found.items():
        # By the names of the files, so that a new image changes no other's place.
        order = sorted(files, key=lambda file: (zlib.crc32(os.path.basename(file).encode("utf-8", "surrogateescape")), file))
        chosen = set(order[: min(max(1, round(share * len(files))), len(files) - 1)])
        kept[name] = [file for file in files if file not in chosen]
        out[name] = [file for file in files if file in chosen]
    return kept, out


def _as_images(name: str, found: dict[str, list[str]]) -> ClassImages:
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    records = PackedRecords(
        LabelledRecord(file_name=file, label=label) for label, files in enumerate(found.values()) for file in files
    )
    return ClassImages(name, tuple(found), records, labels)
