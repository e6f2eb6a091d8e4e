"""Bytes of MXNet's `.params` files in each version, after the description of `resnest_det.weights.mxnet_files`."""

import struct

import numpy as np

DTYPES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6, "int16": 8}


def array_bytes(array: np.ndarray, version: int) -> bytes:
    shape = array.shape
    if version:
        head = struct.pack("<I", 0xF993FAC7 + version) + (struct.pack("<i", 0) if version > 1 else b"")
        head += struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    else:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    if not shape and version < 3:
        return head
    return head + struct.pack("<iii", 1, 0, DTYPES[str(array.dtype)]) + array.tobytes()


def params_bytes(arrays: dict[str, np.ndarray], version: int = 2, named: bool = True) -> bytes:
    """A whole file; version 0 is the one before there were versions."""
    names = [name.encode() for name in arrays] if named else []
    content = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(array_bytes(array, version) for array in arrays.values())
    return content + struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in names)
