"""MXNet's `.params` files: arrays by name, as `mxnet.nd.save` and Gluon's `save_parameters` write them.

A list of arrays has the number 0x112 (u64) before it, then another u64 that means nothing, the arrays (a u64 how many) and their
names (likewise; each a u64 of its length and the bytes). An array is, all of it little-endian:

| part | versions 2 and 3 | version 1 | before versions |
|---|---|---|---|
| u32 | 0xF993FAC9, 0xF993FACA | 0xF993FAC8 | the number of dimensions |
| i32 | how it is stored, 0 for plainly | absent | absent |
| shape | i32 the number of dimensions, i64 each | the same | u32 each |
| place | two i32 | the same | the same |
| type of numbers | i32, see `_DTYPES` | the same | the same |
| numbers | | | |

Without dimensions an array of version 3 is one number; an earlier one is nothing and ends there. The source is
src/ndarray/ndarray.cc of MXNet 1.9.
"""

import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from resnest_det.weights.pickles import UnusableTensor

MAGIC = struct.pack("<Q", 0x112)

_VERSIONS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
_DTYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    5: torch.int8,
    6: torch.int64,
    8: torch.int16,
    12: torch.bfloat16,
}
_STORED = {1: "sparse (by rows)", 2: "sparse (CSR)"}
_MOST_DIMENSIONS = 32
_SMALLEST_ARRAY = 8  # bytes: one of before versions that is nothing has four, but no place
_MOST_PACKED = 20  # times as much as its bytes an archive holds: parameters hardly become fewer by packing,
_SURELY_PACKED = 64 << 20  # bytes, but a little of anything may
_CHUNK = 1 << 20  # bytes read at a time: memory is taken for what there is, not for what is announced


class Damaged(Exception):
    """It is not as MXNet writes it; the message says where."""


# What the library raises at a damaged archive, one with a password, and one packed in a way it does not know.
_UNREADABLE = (Damaged, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def is_archive(path: Path) -> bool:
    """Whether this is what Gluon's model zoo publishes: a zip archive of one `.params` file and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [Path(name).suffix for name in archive.namelist()] == [".params"]
    except zipfile.BadZipFile:
        return False


@contextmanager
def open_params(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of a `.params` file, or of the one in an archive, and how many there are, which an archive only claims.

    Raises:
        Damaged: an archive holds more than its size lets one expect; others of `_UNREADABLE`.
    """
    if not is_archive(path):
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
        if member.file_size > max(_SURELY_PACKED, _MOST_PACKED * path.stat().st_size):
            raise Damaged(
                f"{member.orig_filename[:80]} in it has {member.file_size} bytes, more than parameters can be packed from"
            )
        with archive.open(member) as file:
            yield file, member.file_size


def sha1_of(path: Path) -> str:
    """The SHA-1 that Gluon's model zoo knows a `.params` file by, in an archive or not; "unreadable" of a damaged archive."""
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        with open_params(path) as (file, _):
            while content := file.read(_CHUNK):
                digest.update(content)
    except _UNREADABLE:
        return "unreadable"
    return digest.hexdigest()


def read_params(file: IO[bytes], size: int) -> dict[str, Tensor]:
    """The arrays of a file by their names; where it has no names, by their numbers, "0" the first.

    Args:
        file: at its beginning; size: bytes that are in it. No size in it is believed that these do not bear out.

    Raises:
        Damaged: it ends too early or too late; UnusableTensor: it has other than plain arrays of numbers.
    """
    reader = _Reader(file, size)
    if reader.take(8) != MAGIC:
        raise Damaged("it does not begin as MXNet's files do")
    reader.numbers("<Q")
    (count,) = reader.numbers("<Q")
    reader.check(_SMALLEST_ARRAY * count, f"{count} arrays")
    arrays = [reader.array(f"array {index}") for index in range(count)]
    (names_count,) = reader.numbers("<Q")
    if names_count not in (0, count):
        raise Damaged(f"it has {count} arrays and {names_count} names")
    names = [reader.name() for _ in range(names_count)] or [str(index) for index in range(count)]
    if reader.left:
        raise Damaged(f"{reader.left} bytes follow its last name")
    if len(set(names)) < count:
        raise Damaged("two of its arrays have one name")
    return dict(zip(names, arrays))


class _Reader:
    def __init__(self, file: IO[bytes], size: int):
        self._file = file
        self.left = size

    def check(self, count: int, what: str) -> None:
        if count > self.left:
            raise Damaged(f"it ends in the middle: {what}, where {self.left} bytes are left")

    def take(self, count: int, what: str = "") -> bytes:
        self.check(count, what or f"{count} bytes of a header")
        content = self._file.read(count)
        if len(content) < count:
            raise Damaged("it ends in the middle")
        self.left -= count
        return content

    def numbers(self, kinds: str) -> tuple:
        return struct.unpack(kinds, self.take(struct.calcsize(kinds)))

    def name(self) -> str:
        (length,) = self.numbers("<Q")
        return self.take(length, f"a name of {length} bytes").decode()

    def array(self, which: str) -> Tensor:
        (magic,) = self.numbers("<I")
        version = _VERSIONS.get(magic, 0)
        if version > 1:
            (stored,) = self.numbers("<i")
            if stored:
                raise UnusableTensor(f"{which} is {_STORED.get(stored, f'stored in a way of number {stored}')}")
        dimensions = self.numbers("<i")[0] if version else magic
        if not 0 <= dimensions <= _MOST_DIMENSIONS:
            raise Damaged(f"{which} has {dimensions} dimensions")
        shape = self.numbers(f"<{dimensions}{'q' if version else 'I'}")
        if not dimensions and version < 3:
            raise UnusableTensor(f"{which} is empty, as of a network that was saved before its parameters were made")
        _, _, kind = self.numbers("<iii")
        if kind not in _DTYPES:
            raise UnusableTensor(f"{which} has numbers of a type {kind}")
        dtype = _DTYPES[kind]
        if min(shape, default=0) < 0:
            raise Damaged(f"{which} has the shape {shape}")
        count = math.prod(shape) * dtype.itemsize
        self.check(count, f"{which} of shape {str(shape)[:80]} and {dtype} has {count} bytes")
        content = bytearray()
        while len(content) < count:
            content += self.take(min(_CHUNK, count - len(content)))
        try:
            return torch.frombuffer(content, dtype=dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
        except RuntimeError:  # nothing is in it, but its other sides are beyond all numbers
            raise Damaged(f"{which} has the shape {str(shape)[:80]}") from None
