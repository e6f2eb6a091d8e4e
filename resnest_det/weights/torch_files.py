"""PyTorch's checkpoint files: the zip archive, and the older stream of pickles.

`torch.load` believes what is in them: it compares no checksum, inflates what is compressed and allocates what is asked for. Here
a record's CRC is counted while it is read, and every length is held against the file.
"""

import math
import mmap
import os
import pickle
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from resnest_det.errors import UserError
from resnest_det.weights.pickles import DataUnpickler, Refused, Unusable, inert, nothing

_CHUNK = 1 << 18  # bytes that are read and counted at a time: they fit into a processor's cache
_ALIGNMENT = 16  # bytes, the largest number; torch.save has records begin at multiples of 64
_HEADER = 30  # bytes before a record's name
_MOST_DIMENSIONS = 32
_DTYPES = {
    str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and not str(dtype).startswith("torch.q")
}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QUInt8": torch.uint8,
    "QInt8": torch.int8,
    "QInt32": torch.int32,
    "Untyped": torch.uint8,
}
# MMEngine keeps logged scalars in every checkpoint it writes: objects of one class, whose pickles ask for some of its
# methods through getattr. timm's and torchvision's training scripts keep their parsed flags. All are replaced, so that the
# weights beside them can be read.
_STAND_INS = {
    "mmengine.logging.history_buffer.HistoryBuffer": inert(),
    "builtins.getattr": nothing,
    "__builtin__.getattr": nothing,
    "argparse.Namespace": inert(),
    # Among those flags; Python 3.13 wrote the second pair.
    **{f"{module}.{kind}Path": nothing for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")},
}
_UNUSABLE = {
    "_rebuild_sparse_tensor": "that is sparse",
    "_rebuild_sparse_csr_tensor": "that is sparse",
    "_rebuild_qtensor": "of quantized numbers",
    "_rebuild_meta_tensor_no_storage": "without numbers (on the meta device)",
    "_rebuild_nested_tensor": "that is nested",
    "_rebuild_wrapper_subclass": "of a class of its own",
}


@dataclass(eq=False)
class _Storage:
    """Bytes that tensors are views of: (N,) uint8, and the type that the file says the numbers have."""

    content: Tensor
    dtype: torch.dtype


class _TorchUnpickler(DataUnpickler):
    """`storage(key, count of bytes)` gives the bytes, (N,) uint8."""

    def __init__(self, file: IO[bytes], size: int, storage):
        super().__init__(file, size)
        self._storage = storage
        self._storages: dict[str, _Storage] = {}
        self._functions |= _STAND_INS
        self._functions |= {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
        self._functions |= {
            f"torch.{place}.{name}Storage": dtype for name, dtype in _STORAGES.items() for place in ("cuda", "storage")
        }
        self._functions |= _DTYPES
        self._functions |= {f"torch._utils.{name}": _unusable(kind) for name, kind in _UNUSABLE.items()}
        self._functions |= {
            "torch.per_tensor_affine": None,
            "torch.per_channel_affine": None,
            "torch.serialization._get_layout": nothing,
            "torch.device": nothing,
            "torch.Tensor": None,
            "torch.nn.parameter.Parameter": None,
            "torch.Size": self._size,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": _called,
        }

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *view = pid
        if kind != "storage":
            raise Refused(f"an object of kind {str(kind)[:40]}")
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int or count < 0 or any(view):
            raise pickle.UnpicklingError("a storage is not as PyTorch writes it")
        if key not in self._storages:
            self._storages[key] = _Storage(self._storage(key, count * dtype.itemsize), dtype)
        known = self._storages[key]
        return known if known.dtype == dtype else _Storage(known.content, dtype)

    def _size(self, sides=()):
        self.take(8 * len(sides))
        return torch.Size(sides)

    def _tensor(self, storage, offset, shape, strides, dtype=None, metadata=None):
        if isinstance(storage, Unusable):
            return storage
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise pickle.UnpicklingError("a tensor is not as PyTorch writes it")
        if metadata:
            return Unusable("that is a conjugate or negative view")
        numbers = (offset, *shape, *strides)
        odd = set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) >= 1 << 62
        if odd or len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
            raise pickle.UnpicklingError(f"a tensor has the shape {str(shape)[:80]} and the strides {str(strides)[:80]}")
        dtype = dtype or storage.dtype
        count = math.prod(shape)
        end = offset + sum((side - 1) * stride for side, stride in zip(shape, strides)) + 1 if count else 0
        if end * dtype.itemsize > len(storage.content) or len(storage.content) % dtype.itemsize:
            raise pickle.UnpicklingError(f"a tensor of shape {str(shape)[:80]} is cut from {len(storage.content)} bytes")
        self.take(count * dtype.itemsize)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return storage.content.view(dtype).as_strided(shape, strides, offset)

    def _tensor_v2(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None):
        return self._tensor(storage, offset, shape, strides, metadata=metadata)

    def _tensor_v3(self, storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a tensor has no type")
        return self._tensor(storage, offset, shape, strides, dtype, metadata)


def _unusable(kind: str):
    return lambda *_: Unusable(kind)


def _first(value, *_):
    return value


def _called(function, kind, arguments, state):
    return function(*arguments)


def read_archive(path: Path, crcs: dict[int, int]):
    """The content of a zip archive that `torch.save` wrote.

    The tensors lie in a map of the file, not in copies: copy what is to be kept for longer than a moment.

    Args:
        crcs: is given the CRC-32 of each storage by the address of its bytes.

    Raises:
        UserError: it is another archive; Refused, and errors of any kind: it is damaged.
    """
    with path.open("rb") as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except zipfile.BadZipFile:
            raise UserError(f"checkpoint {path} is truncated or damaged: its archive has no table of contents") from None
        archive = {member.orig_filename: member for member in members}
        if any(name.endswith("/constants.pkl") for name in archive):
            raise UserError(
                f"checkpoint {path} is a TorchScript program, not a checkpoint; save its state_dict() with torch.save"
            )
        programs = [name for name in archive if name.endswith("/data.pkl")]
        if not programs:
            raise UserError(f"checkpoint {path} is a zip archive but not a PyTorch checkpoint")
        if len(archive) < len(members) or len(programs) > 1:
            raise pickle.UnpicklingError("its archive has two records of one name")
        size = os.fstat(file.fileno()).st_size
        # Private: what is written to a tensor stays in memory. The map lives as long as a tensor in it.
        content_of_file = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    folder = programs[0].removesuffix("data.pkl")
    left = size

    def storage(key: str, count: int) -> Tensor:
        nonlocal left
        record = archive[f"{folder}data/{key}"]
        left -= count  # records may lie over each other
        if record.file_size != count or left < 0:
            raise pickle.UnpicklingError(f"record {key[:40]} has {record.file_size} bytes, and {count} are asked for")
        start = _checked_start(content_of_file, record)
        content = (
            torch.frombuffer(content_of_file, dtype=torch.uint8, offset=start, count=count)
            if count
            else torch.empty(0, dtype=torch.uint8)
        )
        content = content if start % _ALIGNMENT == 0 else content.clone()
        crcs[content.data_ptr()] = record.CRC
        return content

    def small(name: str) -> bytes:
        record = archive[folder + name]
        start = _checked_start(content_of_file, record)
        return content_of_file[start : start + record.file_size]

    if f"{folder}byteorder" in archive and small("byteorder").decode() != sys.byteorder:
        raise pickle.UnpicklingError("it was written on a machine of another byte order")
    return _TorchUnpickler(BytesIO(small("data.pkl")), size, storage).load()


def _checked_start(content: mmap.mmap, record: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin in the archive's `content`, compared with its CRC-32."""
    shown = record.orig_filename[:80]
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise pickle.UnpicklingError(f"record {shown} is compressed, which torch.save never does")
    name = record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437")
    header = content[record.header_offset : record.header_offset + _HEADER + len(name)]
    if len(header) < _HEADER + len(name) or header[:4] != b"PK\x03\x04":
        raise pickle.UnpicklingError(f"record {shown} is not where the archive's table of contents says")
    name_length, extra_length = struct.unpack("<HH", header[26:_HEADER])
    if header[_HEADER:] != name or name_length != len(name):
        raise pickle.UnpicklingError(f"record {shown} has another name in the archive's table of contents")
    start = record.header_offset + _HEADER + name_length + extra_length
    if start + record.file_size > len(content):
        raise pickle.UnpicklingError(f"record {shown} of {record.file_size} bytes does not fit into the file")
    with memoryview(content) as whole, whole[start : start + record.file_size] as part:
        if zlib.crc32(part) != record.CRC:
            raise pickle.UnpicklingError(f"record {shown} is not what was written (its CRC differs)")
    return start


def _fill(into: memoryview, file: IO[bytes]) -> int:
    """Read as many bytes of `file` as `into` has; the CRC-32 of them."""
    crc = done = 0
    while done < len(into):
        part = into[done : done + _CHUNK]
        count = file.readinto(part)
        if not count:
            raise EOFError("it ends before its last byte")
        crc = zlib.crc32(part[:count], crc)
        done += count
    return crc


def read_stream(path: Path, crcs: dict[int, int]):
    """The content of a file that `torch.save` before 1.6 wrote: pickles, then the bytes of the storages one after another.

    Args, Raises: see `read_archive`.
    """
    size = path.stat().st_size
    contents: dict[str, tuple[Tensor, int]] = {}
    left = size

    def storage(key: str, count: int) -> Tensor:
        nonlocal left
        left -= count
        if left < 0:
            raise pickle.UnpicklingError(f"storage {key[:40]} of {count} bytes does not fit into the file")
        contents[key] = torch.empty(count, dtype=torch.uint8), count
        return contents[key][0]

    with path.open("rb") as file:

        def load():
            return _TorchUnpickler(file, size, storage).load()

        load()  # the magic number
        if load() != 1001:
            raise pickle.UnpicklingError("it is of a version that PyTorch never had")
        system = load()
        if isinstance(system, dict) and system.get("little_endian", True) != (sys.byteorder == "little"):
            raise pickle.UnpicklingError("it was written on a machine of another byte order")
        content_of_file = load()
        keys = load()
        if not isinstance(keys, list) or len(keys) != len(contents) or set(map(str, keys)) != set(contents):
            raise pickle.UnpicklingError("it has other storages than its tensors need")
        for key in keys:
            content, count = contents[key]
            (numbers,) = struct.unpack("<q", file.read(8))
            if numbers <= 0 < count or (numbers and count % numbers) or (numbers and count // numbers not in (1, 2, 4, 8, 16)):
                raise pickle.UnpicklingError(f"storage {key[:40]} of {count} bytes has {numbers} numbers")
            crcs[content.data_ptr()] = _fill(memoryview(content.numpy()), file)
    return content_of_file
