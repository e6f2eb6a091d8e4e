"""The folder in which annotation files lie packed (`resnest_det.data.packed_file`), made on first use and mapped from then on.

A packed file is called by the SHA-256 of the annotation file's bytes and by that of this room's code, so that it is never that of
an earlier content or of other rules. Which digest a file has is kept beside it, under the file's path, with its size and times: a
file that has others, or was changed just before it was last looked at, is read again to be counted.
"""

import fcntl
import functools
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from resnest_det.data.json_files import read_bytes_and_digest
from resnest_det.data.packed_file import Damaged, Packed, Writer, open_packed, packed_from
from resnest_det.errors import UserError
from resnest_det.files import atomic_write, open_unlinked

logger = logging.getLogger(__name__)

# Times of files are as coarse as this on some systems: a younger one may change again without a trace.
_SETTLED = 2 * 10**9
_UNUSED_DAYS = 60


class _Stamp(msgspec.Struct):
    """What a file was like when its bytes were counted; times in nanoseconds."""

    size: int
    mtime: int
    ctime: int
    seen: int
    sha256: str


def cache_folder() -> Path:
    """RESNEST_DET_CACHE/datasets, or the folder resnest_det/datasets of XDG_CACHE_HOME or ~/.cache.

    Raises:
        OSError: there is no home directory to find it by.
    """
    own = os.environ.get("RESNEST_DET_CACHE")
    try:
        if own:
            return Path(own).expanduser() / "datasets"
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnest_det" / "datasets"
    except RuntimeError as error:
        raise OSError(f"{error} Set RESNEST_DET_CACHE to a folder") from None


def packed_once(json_file: str, kind: str, pack: Callable[[bytes, Writer], None]) -> Packed:
    """An annotation file as `pack` packs it, from the cache where it was packed before.

    Where the cache cannot be written, one line of the log says so, and the file is packed in memory.

    Args:
        kind: of the packed file, where a file can be read as more than one.
        pack: given the file's bytes, unpacked where they were compressed.

    Raises:
        UserError: the file cannot be read, changes while it is read, or whatever `pack` finds wrong with it.
    """
    try:
        return _from_cache(json_file, kind, pack)
    except OSError as error:
        logger.warning(
            "%s: kept in memory, and read again next time: the cache cannot be used: %s", json_file, _what_is_wrong(error)
        )
    content, stamp = _read(json_file)
    return packed_in_memory(lambda out: pack(content, out), {"sha256": stamp.sha256})


def _what_is_wrong(error: OSError) -> str:
    try:
        return f"{cache_folder()}: {error.strerror or error}"
    except OSError as without:
        return str(without)


def packed_in_memory(pack: Callable[[Writer], None], about: Mapping[str, Any] = MappingProxyType({})) -> Packed:
    """What `pack` writes, without a file."""
    file = io.BytesIO()
    pack(Writer(file, about))
    return packed_from(file.getbuffer())


def changed_since(json_file: str, digest: str) -> bool:
    """Whether a file no longer has the bytes of that SHA-256; one that is gone has."""
    with suppress(UserError):
        return (_known_digest(json_file) or _read(json_file)[1].sha256) != digest
    return False


def _from_cache(json_file: str, kind: str, pack: Callable[[bytes, Writer], None]) -> Packed:
    digest = _known_digest(json_file)
    found = _open(_path_of(digest, kind)) if digest else None
    if found is not None:
        return found
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _only_process(folder / f"{_name_of(json_file)}.lock"):
        # Another process may have packed it meanwhile.
        digest = _known_digest(json_file)
        found = _open(_path_of(digest, kind)) if digest else None
        if found is not None:
            return found
        content, stamp = _read(json_file)
        path = _path_of(stamp.sha256, kind)
        found = _open(path)
        if found is None:
            _remove_unused(folder)
            with atomic_write(path, "wb", sync=False) as file:
                pack(content, Writer(file, {"sha256": stamp.sha256}))
            del content
            found = _open(path)
        with atomic_write(folder / f"{_name_of(json_file)}.json", "wb", sync=False) as file:
            file.write(msgspec.json.encode(stamp))
    if found is None:
        raise OSError(f"what was written to {path} cannot be read")
    return found


def _open(path: Path) -> Packed | None:
    try:
        found = open_packed(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        logger.warning("%s is damaged (%s): made anew", path, error)
        return None
    with suppress(OSError):
        os.utime(path)  # see `_remove_unused`
    return found


def _read(json_file: str) -> tuple[bytes, _Stamp]:
    """The bytes of a file, unpacked, and its stamp."""
    before, seen = _stat(json_file), time.time_ns()
    content, raw_digest = read_bytes_and_digest(json_file)
    if _stat(json_file) != before:
        raise UserError(f"{json_file} was changed while it was read; start again when whatever writes it is done")
    return content, _Stamp(*before, seen, raw_digest)


def _stat(json_file: str) -> tuple[int, int, int]:
    try:
        status = os.stat(json_file)
    except OSError as error:
        raise UserError(f"{json_file}: cannot be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _known_digest(json_file: str) -> str | None:
    """The SHA-256 of a file that is certain to be as it was when its bytes were last counted."""
    try:
        content = (cache_folder() / f"{_name_of(json_file)}.json").read_bytes()
        stamp = msgspec.json.decode(content, type=_Stamp)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    same = (stamp.size, stamp.mtime, stamp.ctime) == _stat(json_file)
    settled = max(stamp.mtime, stamp.ctime) + _SETTLED < stamp.seen
    return stamp.sha256 if same and settled and len(stamp.sha256) == 64 and stamp.sha256.isalnum() else None


def _name_of(json_file: str) -> str:
    return hashlib.sha256(os.path.realpath(json_file).encode(errors="surrogateescape")).hexdigest()[:32]


def _path_of(digest: str, kind: str) -> Path:
    return cache_folder() / f"{digest[:32]}-{kind}-{_rules()}.packed"


@functools.cache
def _rules() -> str:
    rules = hashlib.sha256(msgspec.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        rules.update(path.read_bytes())
    return rules.hexdigest()[:16]


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - _UNUSED_DAYS * 24 * 3600
    for path in (*folder.glob("*.packed"), *folder.glob("*.json"), *folder.glob(".*.unfinished")):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Wait until no other process holds the lock. Where the file system has none, two may do the same work."""
    with open_unlinked(lock, "ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
