"""Reading checkpoint files without running anything that is in them.

Three formats are told apart by their first bytes, whatever the file is called: PyTorch's (zip archive, or the older
stream of pickles), safetensors, and the plain pickles of numpy arrays in Detectron2's model zoo. A pickle is a little
program that may call any function; here it may only rebuild tensors, arrays and plain containers.
"""

import codecs
import collections
import math
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from resnest_det.errors import UserError

_ZIP_MAGIC = b"PK\x03\x04"
# torch.save before 1.6 starts with this number (torch.serialization.MAGIC_NUMBER), itself pickled at protocol 2.
_TORCH_STREAM_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_ANY_PROGRAM = "a checkpoint may hold only tensors, arrays and plain data, because unpickling anything else can run code"


class _Inert:
    """Stands where a file has an object of a library that need not be installed; keeps nothing, does nothing."""

    def __setstate__(self, state):
        pass


def _nothing(*_):
    return None


def _bytes_from_text(text, encoding):
    """How protocol 2 writes bytes. The codec is fixed, since looking one up by name imports a module of that name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}, expected 'latin1'")
    return codecs.latin_1_encode(text)[0]


class _DType:
    """Stands for `numpy.dtype`: a number's kind and size, taken from text, never from the flags in a file.

    NumPy's own believes them: a dtype of objects whose flags are cleared turns bytes of the file into pointers.
    """

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise _Refused(f"numpy values of type {ascii(code)[:40]}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        _, byte_order, subdtype, names, *_ = state
        if byte_order not in ("<", ">", "|", "=") or subdtype is not None or names is not None:
            raise _Refused("numpy values of a type that is no plain number")
        if byte_order in "<>":
            self.dtype = self.dtype.newbyteorder(byte_order)

    def read(self, raw, shape: tuple, order: str = "C") -> np.ndarray:
        """An array over as many bytes as it needs, neither more nor fewer."""
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # how Python 2 wrote them
        if not isinstance(raw, bytes) or not isinstance(shape, tuple) or len(shape) > 32:
            raise pickle.UnpicklingError("an array of numpy is not as numpy writes it")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) * self.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:80]} has {len(raw)} bytes")
        return np.frombuffer(raw, self.dtype).reshape(shape, order=order)


class _Array:
    """Stands for `numpy.ndarray`, which would give memory that nothing was written to, or read past the end of a file's bytes."""

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array of numpy has no dtype")
        self.value = dtype.read(raw, shape, "F" if fortran_order else "C")


def _empty_array(kind, *_):
    if kind is not _Array:
        raise pickle.UnpicklingError("numpy is asked for an array that is none")
    return _Array()


def _scalar(dtype, raw):
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("a number of numpy has no dtype")
    return dtype.read(raw, ())[()]


_NUMPY_STAND_INS = {"numpy.ndarray": _Array, "numpy.dtype": _DType}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY_STAND_INS |= {f"{_core}.multiarray._reconstruct": _empty_array, f"{_core}.multiarray.scalar": _scalar}

# MMEngine keeps logged scalars in every checkpoint it writes: objects of one class, whose pickles ask for some of its
# methods through getattr. timm's and torchvision's training scripts keep their parsed flags. All are replaced, so that the
# weights beside them can be read.
_STAND_INS = {
    "mmengine.logging.history_buffer.HistoryBuffer": _Inert,
    "builtins.getattr": _nothing,
    "argparse.Namespace": _Inert,
    # Among those flags; Python 3.13 wrote the second pair.
    **{f"{module}.{kind}Path": _nothing for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")},
}

_PLAIN_PICKLE = {
    **_NUMPY_STAND_INS,
    "collections.OrderedDict": collections.OrderedDict,
    "__builtin__.bytes": bytes,
    "__builtin__.set": set,
    "__builtin__.complex": complex,
    "_codecs.encode": _bytes_from_text,
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _PLAIN_PICKLE[f"{module}.{name}"]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


class _Refused(pickle.UnpicklingError):
    """A pickle asked for something that is not data."""


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a `.pth`, `.pt`, `.safetensors` or Detectron2 `.pkl` file on the CPU.

    Nothing in the file is executed. Numpy arrays of a `.pkl` become tensors.

    Args:
        path: a local file; its format is recognised by content, not by name.

    Returns:
        The dictionary at the top of the file, as it was saved: with or without a `model` or `state_dict` level.

    Raises:
        UserError: the file is absent, truncated, not a checkpoint, or holds anything but tensors and plain data.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder, expected a file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        checkpoint = _read(path, head)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except _Refused as error:
        raise UserError(f"checkpoint {path} refused: it asks for {error}; {_ANY_PROGRAM}") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary of parameters")
    return checkpoint


def _read(path: Path, head: bytes):
    if not head:
        raise UserError(f"checkpoint {path} is empty (0 bytes)")
    if head.startswith(_ZIP_MAGIC) or head.startswith(_TORCH_STREAM_MAGIC):
        return _read_torch(path, is_zip=head.startswith(_ZIP_MAGIC))
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _read_safetensors(path)
    if head[:1] == b"\x80" or head[:1] in b"(}]c":
        return _read_pickle(path)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"checkpoint {path} is a web page, not a checkpoint: the address it came from has moved")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"checkpoint {path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    raise UserError(f"checkpoint {path} is not a checkpoint: neither PyTorch, safetensors nor a pickle")


def _read_torch(path: Path, is_zip: bool):
    if is_zip:
        _check_archive(path)
    allowed = {**_NUMPY_STAND_INS, **_STAND_INS}
    # An open file, not the path: torch would choose a reader by a path's suffix.
    with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]), path.open("rb") as file:
        try:
            return _arrays_to_tensors(torch.load(file, map_location="cpu", weights_only=True))
        except _Refused:
            raise
        except pickle.UnpicklingError as error:
            # PyTorch wraps its reason in advice about switching the protection off, the last thing to repeat here.
            reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
            raise _refusal(str(error)) or UserError(f"checkpoint {path} is damaged: {_first_line(reason)}") from None
        except Exception as error:  # in a damaged file the reader trips over anything
            raise UserError(f"checkpoint {path} is truncated, damaged or not a checkpoint: {_first_line(error)}") from None


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise UserError(f"checkpoint {path} is truncated or damaged: its archive has no table of contents") from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"checkpoint {path} is a TorchScript program, not a checkpoint; save its state_dict() with torch.save")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"checkpoint {path} is a zip archive but not a PyTorch checkpoint")


def _refusal(message: str) -> _Refused | None:
    """The refusal in PyTorch's message, or None when the pickle is merely damaged."""
    if kind := re.search("numpy values of .*", message):
        return _Refused(kind.group())
    asked = re.search(r"(?:GLOBAL|unrecognized function|but got) (\S+)", message)
    forbidden = ("nsupported global", "unsupported GLOBAL", "unrecognized function", "Can only")
    if any(phrase in message for phrase in forbidden):
        return _Refused(asked.group(1) if asked else "something that is not data")
    return None


def _first_line(error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_safetensors(path: Path):
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"checkpoint {path} is truncated or damaged: {_first_line(error)}") from None


def _read_pickle(path: Path):
    try:
        with path.open("rb") as file:
            return _arrays_to_tensors(_DataUnpickler(file, encoding="latin1").load())
    except (_Refused, OSError):
        raise
    except Exception as error:  # a damaged pickle program can raise anything at all
        raise UserError(f"checkpoint {path} is truncated, damaged or not a checkpoint: {_first_line(error)}") from None


def _arrays_to_tensors(value):
    if isinstance(value, dict):
        for key in value:  # in place, since a state has attributes beside its items, and a Counter is made from other things
            value[key] = _arrays_to_tensors(value[key])
        return value
    if type(value) in (list, tuple):
        return type(value)(map(_arrays_to_tensors, value))
    if isinstance(value, _Array):
        # A copy in native byte order: the array is a read-only view of the pickle's bytes.
        return torch.from_numpy(np.array(value.value, dtype=value.value.dtype.newbyteorder("="), order="C"))
    return value
