"""COCO's panoptic PNG format: a segment id in the red, green and blue bytes of each pixel (cocodataset.org/#format-data)."""

import struct
import zlib

import numpy as np

from resnest_det.data.image import open_image, png_header
from resnest_det.errors import UserError

MAX_SEGMENT_ID = 2**24 - 1


def read_segment_ids(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Segment ids of a panoptic PNG, (H, W) uint32: red + 256 green + 65536 blue; 0 is void.

    Args:
        size: (height, width) that it has to have. Looked at in the file's header, before anything is decoded.

    Raises:
        UserError: the file is missing, damaged, not an RGB image or of another size.
    """
    try:
        with open_image(path, ("PNG",)) as image:
            if image.mode != "RGB":
                raise UserError(f"{path} is not a panoptic PNG: its pixels are {image.mode}, but segment ids need RGB")
            width, height = image.size
            if size is not None:
                _check_size(path, (height, width), size)
            # Four bytes per pixel, as Pillow stores RGB, are twenty times faster than combining three planes.
            pixels = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4").reshape(height, width)
    except FileNotFoundError:
        raise UserError(f"panoptic PNG {path} does not exist") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"panoptic PNG {path} cannot be read: {' '.join(str(error).split())}") from error
    return pixels & MAX_SEGMENT_ID


def check_panoptic_png(path: str, size: tuple[int, int]) -> None:
    """That the header of a panoptic PNG says this (height, width).

    Raises:
        UserError: it does not, or cannot be read.
    """
    _check_size(path, png_header(path, "panoptic PNG")[0], size)


def _check_size(path: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    if found != size:
        raise UserError(
            f"panoptic PNG {path} is {found[1]} x {found[0]} pixels (width x height), but its image is {size[1]} x {size[0]} "
            f"by its annotations"
        )


def encode_segment_ids(segment_ids: np.ndarray, what: str) -> bytes:
    """A panoptic PNG of (H, W) integer segment ids.

    Args:
        what: owner of the ids, for the error.

    Raises:
        UserError: an id is negative or does not fit into 24 bits.
    """
    low, high = int(segment_ids.min()), int(segment_ids.max())
    if low < 0 or high > MAX_SEGMENT_ID:
        raise UserError(f"{what}: segment id {low if low < 0 else high} does not fit into a PNG pixel (0 to {MAX_SEGMENT_ID})")
    height, width = segment_ids.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 1:] = segment_ids.astype("<u4")[:, :, None].view(np.uint8)[:, :, :3].reshape(height, -1)
    # The 0 before each row says that it has no filter. Pillow and libpng choose filters that suit photographs: such a file of
    # labels is half as large again and takes three times as long to read.
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    written = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)
