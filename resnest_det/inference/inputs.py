"""Images and videos by paths, folders, patterns, addresses and lists, each with a name that no other has."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resnest_det.errors import UserError, printable
from resnest_det.inference.images import is_address
from resnest_det.inference.video import SUFFIXES as VIDEO_SUFFIXES
from resnest_det.inference.video import is_video

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".mpo")


@dataclass(frozen=True)
class Input:
    """An image or a video to look at: its path, address or camera number, and the name of what is written about it."""

    source: str
    name: str

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


def list_inputs(sources: Iterable[str], lines: Iterable[str] = (), leave_out: str = "") -> tuple[list[Input], list[str]]:
    """What there is to look at, each thing once, and one line on every source that leads to nothing.

    Args:
        sources: files, folders (with everything below), patterns (`**` for folders), addresses, numbers of cameras, and "-" for
            `lines`, each of which is one of these.
        leave_out: a folder whose files are results.
    """
    found, problems = [], []
    for source in sources:
        if source == "-":
            more = [line.strip() for line in lines]
            for each in filter(None, more):
                _look(each, found, problems, leave_out)
        else:
            _look(source, found, problems, leave_out)
    found = list(dict.fromkeys(found))
    counts = Counter(_stem(source).lower() for source in found)
    inputs = [Input(source, _stem(source) if counts[_stem(source).lower()] == 1 else _own_name(source)) for source in found]
    return inputs, problems


def _look(source: str, found: list[str], problems: list[str], leave_out: str) -> None:
    shown = printable(source)
    if is_address(source) or os.path.isfile(source) or is_video(source):
        found.append(source)
    elif os.path.isdir(source):
        below = _files_below(source, leave_out)
        if not below:
            problems.append(f"folder {shown} has no images or videos in it")
        found += below
    elif any(character in source for character in "*?["):
        matching = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
        if not matching:
            problems.append(f"nothing is called {shown}")
        found += matching
    else:
        problems.append(f"{shown} does not exist")


def _files_below(folder: str, leave_out: str) -> list[str]:
    found = []
    own = os.path.realpath(leave_out) if leave_out else None
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if os.path.realpath(os.path.join(parent, each)) != own)
        wanted = (each for each in sorted(files) if each.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)))
        found += [os.path.join(parent, each) for each in wanted]
    return found


def _stem(source: str) -> str:
    if is_address(source):
        source = source.split("?")[0].split("#")[0].rstrip("/")
    name = os.path.splitext(os.path.basename(source))[0]
    return re.sub(r"[^\w. -]", "_", name).strip(". ")[:150] or "image"


def _own_name(source: str) -> str:
    return f"{_stem(source)}-{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def check_any(inputs: Sequence[Input], problems: Sequence[str]) -> None:
    """That there is something to look at.

    Raises:
        UserError: there is not; the message has the reasons.
    """
    if not inputs:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"there is nothing to look at: {'; '.join(problems[:3]) or 'no input was given'}{more}")
