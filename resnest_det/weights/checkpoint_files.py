"""Reading checkpoint files without running anything in them.

Four formats are told apart by their first bytes, whatever the file is called: PyTorch's (zip archive, or the older
stream of pickles), safetensors, MXNet's, and the plain pickles of numpy arrays in Detectron2's model zoo. A pickle is a little
program that may call any function; here it may only rebuild tensors, arrays and plain containers.
"""

import json
import os
from pathlib import Path

from torch import Tensor

from resnest_det.contents import what_it_is
from resnest_det.errors import UserError
from resnest_det.weights import digests, mxnet_files
from resnest_det.weights.pickles import DataUnpickler, Refused, UnusableTensor, plain
from resnest_det.weights.torch_files import read_archive, read_stream

_ZIP_MAGIC = b"PK\x03\x04"
# torch.save before 1.6 starts with this number (torch.serialization.MAGIC_NUMBER), itself pickled at protocol 2.
_TORCH_STREAM_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_ONLY_DATA_ALLOWED = "a checkpoint may hold only tensors, arrays and plain data, because unpickling anything else can run code"


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a `.pth`, `.pt`, `.safetensors`, Detectron2 `.pkl` or MXNet `.params` file (or the zip archive of one) on the CPU.

    Nothing in the file is executed. Numpy arrays of a `.pkl` become tensors. What the file has to tell damage by is compared: the
    checksums of an archive, and the digests that this package writes.

    Args:
        path: a local file; its format is recognised by content, not by name.

    Returns:
        The dictionary at the top of the file, as it was saved: with or without a `model` or `state_dict` level.

    Raises:
        UserError: the file is absent, truncated, damaged, not a checkpoint, or holds anything but tensors and plain data.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder, expected a file")
    if path.exists() and not path.is_file():
        raise UserError(f"checkpoint {path} is a pipe or a device, expected a file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        return _read(path, head)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except Refused as error:
        raise UserError(f"checkpoint {path} refused: it asks for {error}; {_ONLY_DATA_ALLOWED}") from None
    except UnusableTensor as error:
        raise UserError(f"checkpoint {path} cannot be used: {error}, expected plain numbers") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # in a damaged file the reader trips over anything
        raise UserError(f"checkpoint {path} is truncated, damaged or not a checkpoint: {_first_line(error)}") from None


def _read(path: Path, head: bytes) -> dict:
    crcs: dict[int, int] = {}
    if not head:
        raise UserError(f"checkpoint {path} is empty (0 bytes)")
    if head.startswith(mxnet_files.MAGIC) or (head.startswith(_ZIP_MAGIC) and mxnet_files.is_archive(path)):
        with mxnet_files.open_params(path) as (file, size):
            checkpoint = mxnet_files.read_params(file, size)
    elif head.startswith(_ZIP_MAGIC):
        checkpoint = read_archive(path, crcs)
    elif head.startswith(_TORCH_STREAM_MAGIC):
        checkpoint = read_stream(path, crcs)
    elif len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        checkpoint = _read_safetensors(path)
    elif head[:1] == b"\x80" or head[:1] in b"(}]c":
        with path.open("rb") as file:
            checkpoint = DataUnpickler(file, path.stat().st_size).load()
            if file.read(1):
                raise UserError(f"checkpoint {path} is damaged: something follows its last instruction")
    else:
        said = what_it_is(head) or "is not a checkpoint: neither PyTorch, safetensors, MXNet nor a pickle"
        raise UserError(f"checkpoint {path} {said}")
    checkpoint = plain(checkpoint)
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary of parameters")
    if (key := digests.key_of_digests(checkpoint)) is not None:
        stored = checkpoint.pop(key)
        if problem := digests.difference(stored, digests.digests_of(checkpoint, crcs)):
            raise UserError(
                f"checkpoint {path} is damaged: {problem} (if it was changed on purpose, save it without {digests.KEY!r})"
            )
    return checkpoint


def _first_line(error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_safetensors(path: Path) -> dict:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        checkpoint = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        metadata = {key: _from_json(text) for key, text in (file.metadata() or {}).items()}
    if key := digests.key_of_digests(metadata):
        checkpoint[digests.KEY] = metadata[key]
    return checkpoint


def _from_json(text: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a file's metadata may be any text


def save_safetensors(state: dict[str, Tensor]) -> bytes:
    """The content of a `.safetensors` file of `state` (contiguous tensors), with a digest of each."""
    import safetensors.torch

    return safetensors.torch.save(state, {digests.KEY: json.dumps(digests.digests_of(state))})


def with_digests(content: dict) -> dict:
    """`content` with what tells damage by when it is read again, whatever the format."""
    return {**content, digests.KEY: digests.digests_of(content)}
