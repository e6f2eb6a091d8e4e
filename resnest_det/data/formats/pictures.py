"""The image files of a folder, and which of them is meant by a name that a labelling tool has written."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from resnest_det.data.image_files import plain
from resnest_det.errors import UserError

# By their names alone; what they are is seen when they are read.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
# Label Studio puts eight digits before the name of an uploaded file.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")


def walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder at and below `folder` with its file names, sorted; linked ones once, hidden files and folders not at all.

    What is no file, such as a pipe, which would be waited at for ever, is left out; so is a folder that cannot be read.
    """
    seen, waiting = set(), [folder]
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(parent) as entries:
                found = sorted((entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))), key=lambda e: e.name)
        except OSError:
            continue
        waiting += [os.path.join(parent, entry.name) for entry in reversed(found) if _is(entry.is_dir)]
        yield parent, [entry.name for entry in found if _is(entry.is_file)]


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to what may not be looked at
        return False


class Pictures:
    """The image files below `root`, listed once, or those of `names`; all names are from there, with "/"."""

    def __init__(self, root: str, names: Iterable[str] | None = None):
        self.root = root
        self.names = list(_images_below(root) if names is None else names)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            last = plain(name.rpartition("/")[2])
            self._by_name.setdefault(last, []).append(name)
            self._by_stem.setdefault(os.path.splitext(last)[0], []).append(name)
        self._all = set(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def renamed(self, name: str, found: str) -> bool:
        """Whether `found` is not simply what `name` is, seen from a folder above."""
        return not f"/{os.path.abspath(self.path(found)).replace(os.sep, '/')}".endswith(f"/{name.removeprefix('./')}")

    def find(self, name: str, where: str, *, stem_only: bool = False) -> str | None:
        """The file that `name` means: this path, or else the one file of this last part of a path, in whatever folder.

        `\\` for `/`, `%20`, an address, spaces, another case, suffix or Unicode form and Label Studio's eight digits are seen
        through. Of several files the one whose folders agree with those of `name` is taken.

        Args:
            stem_only: `name` has no suffix.

        Raises:
            UserError: several files are as likely; the message begins with `where`.
        """
        if name in self._all and not stem_only:
            return name
        path = _path_of(name)
        folder, _, last = path.rpartition("/")
        for candidate in (last, _UPLOADED.sub("", last)):
            found = [] if stem_only else self._by_name.get(plain(candidate), [])
            stem = candidate if stem_only else os.path.splitext(candidate)[0]
            found = found or self._by_stem.get(plain(stem), [])
            found = found or ([] if stem_only else self._by_stem.get(plain(candidate), []))  # a name without its suffix
            if found:
                return self._likeliest(found, f"{folder}/{candidate}", where)
        return None

    def _likeliest(self, found: list[str], path: str, where: str) -> str:
        wanted = [plain(part) for part in path.split("/") if part]

        def likeness(name: str) -> tuple[int, bool, bool]:
            parts = name.split("/")
            shared = 0
            for mine, theirs in zip(reversed(parts[:-1]), reversed(wanted[:-1])):
                if plain(mine) != theirs:
                    break
                shared += 1
            exact = parts[-1] == path.rpartition("/")[2]
            return shared, exact, len(parts) == 1

        ordered = sorted(found, key=likeness, reverse=True)
        if len(ordered) > 1 and likeness(ordered[0]) == likeness(ordered[1]) and not self._same(*ordered[:2]):
            raise UserError(
                f"{where}: whether image {path.strip('/')[:200]} is {ordered[0]} or {ordered[1]} of {self.root} cannot be "
                "told; give the folder of the right one, or files of different names"
            )
        return ordered[0]

    def _same(self, name: str, other: str) -> bool:
        """Whether one is a link to the other, or both to a third."""
        return os.path.realpath(self.path(name)) == os.path.realpath(self.path(other))


def _images_below(root: str) -> Iterator[str]:
    for parent, file_names in walk(root):
        for file_name in file_names:
            if os.path.splitext(file_name)[1].lower() in SUFFIXES:
                yield os.path.relpath(os.path.join(parent, file_name), root).replace(os.sep, "/")


def _path_of(name: str) -> str:
    """The path in what a tool wrote: an address, a path of Windows, a path of another machine."""
    name = name.strip()
    if "://" in name or name.startswith(("/data/", "data:")) or "?d=" in name:
        try:
            parts = urlsplit(name)
            name = parse_qs(parts.query).get("d", [parts.path])[0]
        except ValueError:  # no address
            pass
    # Names with a % of their own are found as they are, above.
    return unquote(name).replace("\\", "/")
