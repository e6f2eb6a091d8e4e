"""Images inside tar files, in webdataset's convention: the files of a sample follow each other and share their name up to a dot.

A sample is an image (`00001.jpg`) and its class: a number in `00001.cls`, or `label` in `00001.json`. What the classes are
called is in classes.txt beside the shards, one a line; without it they are called by their numbers. The shards are listed once
before training, which can so go on exactly where it ended; images are then read where they lie, from few shards at a time.
"""

import glob
import importlib
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from resnest_det.data.class_folders import SPLITS, SUFFIXES, ClassImages, LabelledRecord, check_same_classes
from resnest_det.data.loader import PackedRecords
from resnest_det.errors import UserError

_LISTERS = 8  # shards that are listed at a time
_MOST_LABEL = 100_000  # bytes


def is_shards(path: str) -> bool:
    """Whether a path means tar files: a pattern such as DIR/train-{000..127}.tar, or a folder that has some."""
    return path.endswith(".tar") or (os.path.isdir(path) and bool(glob.glob(os.path.join(glob.escape(path), "*.tar"))))


def read_shards(train: str, val: str = "", held_out: float = 0.1) -> tuple[ClassImages, ClassImages]:
    """The images to train on and those to validate on.

    Args:
        train: a folder with train*.tar and val*.tar, or a pattern: {000..127} and * stand for many.
        val: a pattern or a folder for the images to validate on; "" for those in the folder.
        held_out: the share of the shards to validate on where there are no others, one at least.

    Raises:
        UserError: there are no shards, one is cut short or damaged, or one has an image without a class.
    """
    base_plus_ext = _webdataset("tariterators").base_plus_ext
    if os.path.isdir(train) and not val:
        files = sorted(glob.glob(os.path.join(glob.escape(train), "*.tar")))
        of_split = {
            split: [file for file in files if os.path.basename(file).lower().startswith(names)] for split, names in SPLITS.items()
        }
        training, validation = of_split["train"] or [file for file in files if file not in of_split["val"]], of_split["val"]
    else:
        training, validation = _expanded(train), _expanded(val) if val else []
    if not training:
        raise UserError(f"{train}: there are no tar files to train on")
    if not validation:
        if len(training) < 2:
            raise UserError(f"{train} is one tar file: say with DATA.VAL which images to evaluate on")
        count = min(max(1, round(held_out * len(training))), len(training) - 1)
        training, validation = training[:-count], training[-count:]
    found = [_listed(files, base_plus_ext) for files in (training, validation)]
    labels = [np.array([record["label"] for record in records]) for records in found]
    classes = _class_names(Path(training[0]).parent, [int(each.max(initial=-1)) for each in labels])
    splits = []
    for files, records, of_records in zip((training, validation), found, labels):
        if not records:
            raise UserError(f"{files[0]}: there is no image in it, nor in the {len(files) - 1} others")
        numbers = {file: number for number, file in enumerate(files)}
        shards = np.array([numbers[record["shard"]] for record in records])
        splits.append(ClassImages(_name_of(files), classes, PackedRecords(records), of_records, shards))
    present = [[classes[label] for label in np.unique(of_records)] for of_records in labels]
    check_same_classes(present[0], splits[0].name, present[1], splits[1].name)
    return splits[0], splits[1]


def _webdataset(module: str):
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise UserError(f'tar shards need the package webdataset ({error}): pip install "resnest_det[classify]"') from error


def _expanded(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        return sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
    files = []
    for each in _webdataset("shardlists").expand_urls(os.path.expanduser(pattern)):
        found = sorted(glob.glob(each)) if glob.has_magic(each) and not os.path.exists(each) else [each]
        if not found or not os.path.isfile(found[0]):
            raise UserError(f"{each}: there is no such tar file")
        files += found
    return files


def _name_of(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} ... {os.path.basename(files[-1])}"


def _listed(files: Sequence[str], base_plus_ext: Callable) -> list[LabelledRecord]:
    with ThreadPoolExecutor(_LISTERS) as pool:
        return [record for records in pool.map(lambda file: _records_of(file, base_plus_ext), files) for record in records]


def _records_of(path: str, base_plus_ext: Callable) -> list[LabelledRecord]:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        length = os.path.getsize(path)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    raise UserError(
                        f"{path} is cut short: {member.name} goes on to byte {member.offset_data + member.size} of {length}"
                    )
                key, extension = base_plus_ext(member.name)
                if key is None:
                    continue
                extension = extension.lower()
                if f".{extension}" in SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif extension in ("cls", "json") and member.size <= _MOST_LABEL:
                    content = archive.extractfile(member).read()
                    labels[key] = _label(content, extension, f"{path}: {member.name}")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} cannot be read, it is cut short or no tar file: {' '.join(str(error).split())}") from error
    if _ends_early(path, length):
        raise UserError(f"{path} is cut short: it does not end with the two empty blocks that a tar file ends with")
    if without := [key for key in images if key not in labels]:
        raise UserError(f"{path}: {images[without[0]][0]} has no class, {without[0]}.cls or .json with a label")
    return [
        {"file_name": f"{path}/{name}", "label": labels[key], "shard": path, "offset": offset, "size": size}
        for key, (name, offset, size) in images.items()
    ]


def _ends_early(path: str, length: int) -> bool:
    with open(path, "rb") as file:
        file.seek(max(0, length - 1024))
        return length % 512 != 0 or file.read() != bytes(1024)


def _label(content: bytes, extension: str, where: str) -> int:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if extension == "json" and isinstance(value, dict):
        value = next((value[name] for name in ("label", "cls") if name in value), None)
    if type(value) is not int or not 0 <= value < 10_000_000:
        raise UserError(f"{where}: expected the number of a class, found {content[:40]!r}")
    return value


def _class_names(folder: Path, largest: Sequence[int]) -> tuple[str, ...]:
    path = folder / "classes.txt"
    count = max(largest) + 1
    if not path.is_file():
        return tuple(str(number) for number in range(count))
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}") from None
    if len(names) < count:
        raise UserError(f"{path} names {len(names)} classes, but there is an image of class {count - 1}, counted from 0")
    return tuple(names)
