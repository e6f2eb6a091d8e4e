"""Digests of what a checkpoint holds, written into it, so that damage shows in formats that have no checksums of their own.

They are CRC-32: they find a bit that a disk or a copy turned, not a person who wants to deceive.
"""

import zlib

import torch
from torch import Tensor

from resnest_det.errors import nearest

KEY = "resnest_det_digests"
_REST = ""  # the digest of everything that is no tensor: names, types, shapes and plain values
_MOST_VALUES = 2_000_000


def digests_of(content, known: dict[int, int] | None = None) -> dict[str, int]:
    """The digest of each tensor in nested containers, by its path (`model.stem.conv1_1.weight`), and one of everything else.

    Args:
        known: CRC-32 by the address of a storage's first byte, of storages that were read and counted already.

    Raises:
        ValueError: there are more values than a checkpoint has.
    """
    digests: dict[str, int] = {}
    rest: list[str] = []

    def visit(value, path: tuple) -> None:
        if len(rest) > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values")
        if isinstance(value, Tensor):
            digests[".".join(map(str, path))] = _digest(value, known or {})
            rest.append(f"{value.dtype}{tuple(value.shape)}")
        elif isinstance(value, dict):
            rest.append("{")
            for key in sorted(value, key=repr):  # not every format keeps the order
                rest.append(repr(key))
                visit(value[key], (*path, key))
            rest.append("}")
            if (versions := getattr(value, "_metadata", None)) is not None:
                visit(versions, (*path, "_metadata"))
        elif isinstance(value, (list, tuple)):
            rest.append(type(value).__name__)
            for index, item in enumerate(value):
                visit(item, (*path, index))
            rest.append("end")
        else:
            rest.append(repr(value))

    visit(content, ())
    digests[_REST] = zlib.crc32("\0".join(rest).encode("utf-8", "surrogatepass"))
    return digests


def key_of_digests(content: dict) -> str | None:
    """The key that digests are under in `content`, also where the key itself is damaged; None if there are none."""
    if KEY in content:
        return KEY
    for key, value in content.items():
        if isinstance(value, dict) and _REST in value and all(type(digest) is int for digest in value.values()):
            return key
    return next(iter(nearest(KEY, [key for key in content if isinstance(key, str)], count=1, cutoff=0.75)), None)


def _digest(tensor: Tensor, known: dict[int, int]) -> int:
    if not tensor.numel():
        return 0
    storage = tensor.untyped_storage()
    if tensor.is_contiguous() and storage.data_ptr() in known and storage.nbytes() == tensor.numel() * tensor.element_size():
        return known[storage.data_ptr()]
    numbers = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(memoryview(numbers.view(torch.uint8).numpy()))


def difference(stored, found: dict[str, int]) -> str:
    """What differs between digests that were written and those of what was read, as the end of a sentence; "" if nothing does."""
    if not isinstance(stored, dict):
        return "its digests are not as they were written"
    changed = [name for name in found if name and stored.get(name) != found[name]]
    if changed:
        more = f" and {len(changed) - 1} other tensors" if len(changed) > 1 else ""
        return f"{changed[0][:200]}{more} are not the numbers that were written"
    return "" if stored == found else "its names, shapes or settings are not those that were written"
