"""Reading checkpoint files without running anything that is in them.

Three formats are told apart by their first bytes, whatever the file is called: PyTorch's (zip archive, or the older
stream of pickles), safetensors, and the plain pickles of numpy arrays in Detectron2's model zoo. A pickle is a little
program that may call any function; here it may only rebuild tensors, arrays and plain containers.
"""

import codecs
import collections
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


def _numpy_parts() -> dict[str, object]:
    array = np.zeros(0)
    reconstruct = array.__reduce__()[0]
    scalar = np.float32(0).__reduce__()[0]
    parts = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for core in ("numpy.core", "numpy._core"):
        parts[f"{core}.multiarray._reconstruct"] = reconstruct
        parts[f"{core}.multiarray.scalar"] = scalar
    return parts


def _dtype_classes() -> dict[str, type]:
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDSU"}
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}


# MMEngine keeps logged scalars in every checkpoint it writes: objects of one class, whose pickles ask for some of its
# methods through getattr. Both are replaced, so that the weights beside them can be read.
_STAND_INS = {"mmengine.logging.history_buffer.HistoryBuffer": _Inert, "builtins.getattr": _nothing}

_PLAIN_PICKLE = {
    **_numpy_parts(),
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
    allowed = {**_numpy_parts(), **_dtype_classes(), **_STAND_INS}
    # An open file, not the path: torch would choose a reader by a path's suffix.
    with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]), path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
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
            data = _DataUnpickler(file, encoding="latin1").load()
    except (_Refused, OSError):
        raise
    except Exception as error:  # a damaged pickle program can raise anything at all
        raise UserError(f"checkpoint {path} is truncated, damaged or not a checkpoint: {_first_line(error)}") from None
    return _arrays_to_tensors(data)


def _arrays_to_tensors(value):
    if isinstance(value, dict):
        return type(value)((key, _arrays_to_tensors(item)) for key, item in value.items())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # A copy in native byte order: unpickled arrays can be read-only views of the pickle's bytes.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    return value
