"""A file of arrays that processes map into memory together: written in one pass, and believed only as far as its digest goes.

From its beginning: `MAGIC`; a block of bytes of any length, which is too large to be read each time, so that each part
of it has a checksum in one of the arrays; the arrays; their table as JSON; the length of the table (8 bytes), the SHA-256 of
arrays and table (32 bytes), `MAGIC` again.
"""

import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

import msgspec
import numpy as np

MAGIC = b"resnest\x01"
_ALIGNMENT = 64
_TYPES = ("<i8", "<i4", "<u4", "|u1", "<f8")


class Damaged(ValueError):
    """What is no packed file, or no longer as it was written."""


class _Array(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    shape: list[int]
    start: int


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    arrays: dict[str, _Array]
    about: dict[str, Any]
    start: int  # of the arrays


@dataclass(frozen=True)
class Packed:
    """An open packed file.

    Attributes:
        arrays: by name; cannot be written to.
        about: what JSON can hold.
        block: (N,) uint8, its parts unchecked.
        path: None if it is in memory alone.
    """

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    block: np.ndarray
    path: str | None = None

    def __reduce__(self):
        # Another process maps the file as well; it has no use for a copy of the bytes.
        if self.path is not None:
            return open_packed, (self.path,)
        return self.__class__, (dict(self.arrays), self.about, self.block)


class Writer:
    """Writes a packed file: parts of the block as they come, then `finish`.

    Args:
        about: to be known beside what `finish` is given.
    """

    def __init__(self, file: IO[bytes], about: Mapping[str, Any] = MappingProxyType({})):
        self._file, self._about = file, about
        self._file.write(MAGIC)
        self.length = 0  # of the block

    def restarted(self) -> "Writer":
        """A writer of the same file from its beginning."""
        self._file.seek(0)
        self._file.truncate()
        return Writer(self._file, self._about)

    def append(self, part: bytes | np.ndarray) -> None:
        """Add to the block."""
        self.length += memoryview(part).nbytes
        self._file.write(part)

    def finish(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Write the arrays, of one of the types "<i8", "<i4", "<u4", "|u1" and "<f8", and what else is to be known."""
        digest, table = hashlib.sha256(), {}
        end = start = len(MAGIC) + self.length

        def write(part: bytes) -> None:
            nonlocal end
            self._file.write(part)
            digest.update(part)
            end += memoryview(part).nbytes

        for name, array in arrays.items():
            if array.dtype.str not in _TYPES:
                raise TypeError(f"{name} is {array.dtype.str}, not one of {_TYPES}")
            write(b"\0" * (-end % _ALIGNMENT))
            table[name] = _Array(array.dtype.str, list(array.shape), end)
            write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        encoded = msgspec.json.encode(_Table(table, {**self._about, **about}, start))
        write(encoded)
        self._file.write(len(encoded).to_bytes(8, "little") + digest.digest() + MAGIC)


def open_packed(path: str | os.PathLike) -> Packed:
    """Map a packed file into memory.

    Raises:
        OSError: it cannot be opened; Damaged: it is not as it was written.
    """
    with open(path, "rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise Damaged("empty") from None
    return packed_from(content, os.fspath(path))


def packed_from(content: mmap.mmap | bytes, path: str | None = None) -> Packed:
    """The arrays in the bytes of a packed file.

    Raises:
        Damaged: it is not as it was written.
    """
    whole = memoryview(content)
    tail = len(whole) - len(MAGIC) - 40
    if tail < len(MAGIC) or whole[: len(MAGIC)] != MAGIC or whole[-len(MAGIC) :] != MAGIC:
        raise Damaged("cut off, or no packed file")
    begin = tail - int.from_bytes(whole[tail : tail + 8], "little")
    if begin < len(MAGIC):
        raise Damaged("its table is longer than the file")
    try:
        table = msgspec.json.decode(whole[begin:tail], type=_Table)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged("its table is unreadable") from error
    if not len(MAGIC) <= table.start <= begin:
        raise Damaged("its table points outside")
    if hashlib.sha256(whole[table.start : tail]).digest() != whole[tail + 8 : tail + 40]:
        raise Damaged("its digest is another")
    arrays = {}
    for name, array in table.arrays.items():
        count = math.prod(array.shape)
        if array.type not in _TYPES or min(array.shape, default=0) < 0 or not table.start <= array.start <= begin:
            raise Damaged(f"array {name} is impossible")
        if array.start + count * np.dtype(array.type).itemsize > begin:
            raise Damaged(f"array {name} points outside")
        arrays[name] = np.frombuffer(whole, array.type, count, array.start).reshape(array.shape)
    block = np.frombuffer(whole, np.uint8, table.start - len(MAGIC), len(MAGIC))
    return Packed(arrays, table.about, block, path)
