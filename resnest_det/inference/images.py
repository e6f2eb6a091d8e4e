"""Images from wherever they are: files, addresses, arrays, Pillow's images and tensors, as pixels for a model."""

import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from resnest_det.data.image import MAX_PIXELS, read_image, to_eight_bits
from resnest_det.errors import UserError, printable
from resnest_det.weights.transfer import open_web

Source = str | os.PathLike | bytes | np.ndarray | Image.Image | torch.Tensor

_TIMEOUT = 20  # seconds without a byte
_MOST_SECONDS = 120  # for all of them
_MOST_BYTES = 200_000_000  # of a file from the web
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Picture:
    """An image that was read.

    Attributes:
        pixels: (H, W, C) uint8, C = 1 for the format "L" and 3 otherwise.
        name: the path or the address, or "image N" of what has none.
        rgb: gives (H, W, 3) uint8; a file is read again for it, so that results of thousands of files don't hold their pixels.
    """

    pixels: np.ndarray
    name: str
    rgb: Callable[[], np.ndarray]


def is_address(source: object) -> bool:
    """Whether it is an address on the web."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def read_picture(source: Source, image_format: str, name: str = "image") -> Picture:
    """Read an image of any kind.

    Args:
        source: a path, an address (http, https) or the bytes of a file, turned upright by its EXIF orientation; or pixels: an
            array (H, W), (H, W, 1) or (H, W, 3) uint8 in RGB, one of Pillow's images, as it is, or a tensor (C, H, W) in RGB,
            uint8 or float from 0 to 1.
        image_format: "BGR", "RGB" or "L".
        name: of an image that has none.

    Raises:
        UserError: it cannot be read or is no image; the message names it.
    """
    if is_address(source):
        return _from_web(source, image_format)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return Picture(read_image(path, image_format), path, lambda: read_image(path, "RGB"))
    if isinstance(source, bytes):
        return Picture(read_image(name, image_format, content=source), name, lambda: read_image(name, "RGB", content=source))
    rgb = _rgb(source, name)
    return Picture(in_format(rgb, image_format), name, lambda: rgb)


def in_format(rgb: np.ndarray, image_format: str) -> np.ndarray:
    """An RGB image (H, W, 3) in another format."""
    if image_format == "L":
        return np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None]
    return rgb[:, :, ::-1] if image_format == "BGR" else rgb


def _rgb(source: np.ndarray | Image.Image | torch.Tensor, name: str) -> np.ndarray:
    if isinstance(source, Image.Image):
        _check_size(source.height, source.width, name)
        try:
            return np.asarray(to_eight_bits(source))
        except (OSError, SyntaxError) as error:
            raise UserError(f"{name} cannot be read, it is damaged: {error}") from error
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        if source.is_floating_point():
            if source.numel() and not (float(source.min()) >= 0 and float(source.max()) <= 1):
                raise UserError(f"{name}: a tensor of floats has values from 0 to 1, this one does not; uint8 has 0 to 255")
            source = (source * 255).round().to(torch.uint8)
        if source.ndim == 3:
            source = source.permute(1, 2, 0)
        source = source.numpy()
    if not isinstance(source, np.ndarray):
        raise UserError(
            f"{name} is a {type(source).__name__}, expected a path, an address, bytes, an array, a tensor or a PIL image"
        )
    if source.ndim == 2:
        source = source[:, :, None]
    if source.ndim != 3 or source.shape[2] not in (1, 3) or source.dtype != np.uint8 or not source.size:
        raise UserError(
            f"{name} is an array of shape {source.shape} and type {source.dtype}, expected (H, W) or (H, W, 3) of uint8 in RGB, "
            "or a tensor (C, H, W)"
        )
    _check_size(*source.shape[:2], name)
    return np.ascontiguousarray(np.broadcast_to(source, (*source.shape[:2], 3)))


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise UserError(f"{name} is {width} x {height} pixels; images of at most {MAX_PIXELS} pixels are read")


def _from_web(address: str, image_format: str) -> Picture:
    shown = printable(address)
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "resnest_det"})
        content, end = io.BytesIO(), time.monotonic() + _MOST_SECONDS
        with open_web(request, _TIMEOUT) as response:
            while part := response.read(_CHUNK):
                content.write(part)
                if content.tell() > _MOST_BYTES:
                    raise UserError(f"image {shown}: more than {_MOST_BYTES} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"it takes more than {_MOST_SECONDS} s")
    except urllib.error.HTTPError as error:
        raise UserError(f"image {shown} cannot be fetched: HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(f"image {shown} cannot be fetched: {reason}") from None
    rgb = read_image(shown, "RGB", content=content.getvalue())
    return Picture(in_format(rgb, image_format), address, lambda: rgb)
