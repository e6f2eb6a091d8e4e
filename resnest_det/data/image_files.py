"""Whether the image files of a dataset are where its annotations say, before any of them is read, and what may be wrong."""

import os
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, combinations
from urllib.parse import quote, unquote

import numpy as np

from resnest_det.data.image import MAX_PIXELS, READERS, check_record_size
from resnest_det.data.instance_records import images_of, sizes_of
from resnest_det.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_MOST_FOLDERS = 30  # that are tried
_MOST_HEADERS = 5000  # that are looked at before a run: 0.2 s from the page cache


def check_image_files(name: str, records: Sequence[dict], image_root: str) -> None:
    """That the image of every record is a file, and not too large to be read. Each folder is listed once.

    Raises:
        UserError: some are not; the message says how many, names the first and the likely cause.
    """
    check_files(images_of(records), "file_name", image_root, f"dataset {name}: image")
    # In doubles: products of sides that no image has would not fit.
    for at in np.flatnonzero(sizes_of(records).astype(np.float64).prod(axis=1) > MAX_PIXELS).tolist():
        record = records[at]
        raise UserError(
            f"dataset {name}: image {record['file_name']} is {record['width']} x {record['height']} pixels (width x height) "
            f"by its annotations; images of at most {MAX_PIXELS} pixels are read: cut it into tiles"
        )


def check_image_sizes(records: Sequence[dict]) -> None:
    """That images are of the sizes that their annotations say, by the headers of the files: all, or `_MOST_HEADERS` of more.

    Raises:
        UserError: one is not, or cannot be read; see `resnest_det.data.image.read_record_image`.
    """
    looked_at = images_of(records)
    if len(records) > _MOST_HEADERS:
        looked_at = random.Random(0).sample(looked_at, _MOST_HEADERS)
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(check_record_size, looked_at))


def check_files(records: Iterable[dict], key: str, root: str, what: str) -> None:
    """That the file which each record has under `key` is there.

    Args:
        root: the folder that their names in the annotations begin from.
        what: they are, for the error.

    Raises:
        UserError: some are not there; the message says how many, names the first and the likely cause.
    """
    paths = {record[key]: record["image_id"] for record in records}
    # One listing instead of a hundred thousand questions to what may be a network disk. Only names that a listing lacks are
    # asked for: some systems find files under names that they don't list, of another case or Unicode form.
    present = set(chain.from_iterable(map(_files_in, {os.path.dirname(path) for path in paths})))
    absent = [path for path in paths if path not in present and not os.path.isfile(path)]
    if absent:
        raise UserError(
            f"{what} {absent[0]} of image {paths[absent[0]]} does not exist; {len(absent)} of {len(paths)} are absent"
            + _likely_cause(absent[0], root, none=len(absent) == len(paths))
        )


def _files_in(folder: str) -> list[str]:
    """Paths that begin with the folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return [entry.path for entry in entries if entry.is_file()]
    except (OSError, ValueError):  # the folder, too, is a name that the annotations may have wrong
        return []


def _likely_cause(path: str, root: str, none: bool) -> str:
    """What would find the file, beginning with "; ", or "" where nothing known does and `none` of the files is there."""
    name = path.removeprefix(os.path.join(root, ""))
    folder = _ImageFolder(root)
    # Datasets often have the same names: what another folder has is meant only where this one has nothing.
    known = [(text, correct) for text, correct in _MISTAKES.items() if none or correct is not _in_another_folder]
    for count in range(1, _MOST_MISTAKES + 1):
        for mistakes in combinations(known, count):
            candidates = [name]
            for _, correct in mistakes:
                candidates = [corrected for candidate in candidates for corrected in correct(candidate, folder)]
            for candidate in candidates:
                found = os.path.normpath(os.path.join(root, candidate))
                if os.path.isfile(found):
                    return f"; there is {found}: the name in the annotations {' and '.join(text for text, _ in mistakes)}"
    if not none:
        return ""
    example = os.path.basename(min(_files_in(root), default=""))
    return f"; {root} may be the wrong folder: " + (f"it has files such as {example}" if example else "it has no files")


def plain(name: str) -> str:
    """The same for names that differ in case, Unicode form or spaces around them alone."""
    return unicodedata.normalize("NFC", name).casefold().strip()


class _ImageFolder:
    """What is in a folder and around it, each listed once."""

    def __init__(self, root: str):
        self.root = root
        self.known: dict[str, dict[str, list[str]]] = {}

    def alike(self, folder: str, name: str) -> list[str]:
        """What `folder` (from the root) has under names that differ from this one in case or Unicode form alone."""
        if folder not in self.known:
            names = self.known[folder] = {}
            try:
                for entry in os.listdir(os.path.join(self.root, folder)):
                    names.setdefault(plain(entry), []).append(entry)
            except (OSError, ValueError):
                pass
        return self.known[folder].get(plain(name), [])

    @cached_property
    def others(self) -> list[str]:
        """Folders inside the root, above it and beside it, from the root."""
        found = [".."]
        for parent in ("", ".."):
            try:
                with os.scandir(os.path.join(self.root, parent)) as entries:
                    folders = sorted(entry.name for entry in entries if entry.is_dir())
            except OSError:
                continue
            found += [os.path.join(parent, folder) for folder in folders[:_MOST_FOLDERS]]
        return found


def _with_slashes(name: str, folder: _ImageFolder) -> Iterator[str]:
    if "\\" in name:
        yield name.replace("\\", "/")


def _unquoted(name: str, folder: _ImageFolder) -> Iterator[str]:
    if unquote(name) != name:
        yield unquote(name)


def _quoted(name: str, folder: _ImageFolder) -> Iterator[str]:
    quoted = quote(name, errors="replace")
    if quoted != name:
        yield quoted


def _stripped(name: str, folder: _ImageFolder) -> Iterator[str]:
    if name.strip() != name:
        yield name.strip()


def _with_fewer_folders(name: str, folder: _ImageFolder) -> Iterator[str]:
    parts = name.split("/")
    yield from ("/".join(parts[first:]) for first in range(max(1, len(parts) - _MOST_FOLDERS), len(parts)))


def _with_another_suffix(name: str, folder: _ImageFolder) -> Iterator[str]:
    stem, suffix = os.path.splitext(name)
    yield from (stem + other for other in _SUFFIXES if other != suffix.lower())  # another case is a mistake of its own
    yield from (name + other for other in _SUFFIXES)


def _in_another_case(name: str, folder: _ImageFolder) -> Iterator[str]:
    found = [""]
    for part in name.split("/"):
        found = [os.path.join(parent, entry) for parent in found for entry in folder.alike(parent, part)]
    yield from found


def _in_another_folder(name: str, folder: _ImageFolder) -> Iterator[str]:
    yield from (os.path.join(other, name) for other in folder.others)


# What people have wrong, and the names that may be meant by one below the root. Tried in this order, alone and then together.
_MISTAKES: dict[str, Callable[[str, _ImageFolder], Iterator[str]]] = {
    r"has \ for /": _with_slashes,
    "is quoted as in an address (%20)": _unquoted,
    "is not quoted as that of the file (%20)": _quoted,
    "has spaces around it": _stripped,
    "begins with too many folders": _with_fewer_folders,
    "has another suffix": _with_another_suffix,
    "is in another case or Unicode form": _in_another_case,
    "begins in another folder than the one given for images": _in_another_folder,
}
_MOST_MISTAKES = 3
