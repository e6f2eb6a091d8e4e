"""Libraries that decode JPEGs, by name."""

import functools
import importlib
from collections.abc import Callable

import numpy as np

from resnest_det.errors import ArgumentError

# The package of each; Pillow is always there.
DECODERS = {"pil": "", "turbojpeg": "PyTurboJPEG", "simplejpeg": "simplejpeg", "torchcodec": "torchcodec"}


@functools.cache
def jpeg_decoder(name: str) -> Callable[[bytes], np.ndarray] | None:
    """From the content of a JPEG to (H, W, 3) uint8 RGB, as it is stored; None for Pillow, which reads other formats as well.

    Raises:
        ArgumentError: there is no such decoder, or its package is not installed.
    """
    if name not in DECODERS:
        raise ArgumentError("decoder", f"is {name!r}; supported: {', '.join(map(repr, DECODERS))}")
    if name == "pil":
        return None
    try:
        return _MAKERS[name]()
    except (ImportError, OSError, RuntimeError) as error:
        needs = f': pip install "{DECODERS[name]}"' if DECODERS[name] else ""
        raise ArgumentError("decoder", f"{name!r} cannot be used ({' '.join(str(error).split())[:200]}){needs}") from error


def _turbojpeg() -> Callable[[bytes], np.ndarray]:
    turbojpeg = importlib.import_module("turbojpeg")
    decoder = turbojpeg.TurboJPEG()
    return lambda content: decoder.decode(content, pixel_format=turbojpeg.TJPF_RGB)


def _simplejpeg() -> Callable[[bytes], np.ndarray]:
    simplejpeg = importlib.import_module("simplejpeg")
    return lambda content: simplejpeg.decode_jpeg(content, colorspace="RGB")


def _torchcodec() -> Callable[[bytes], np.ndarray]:
    decoders = importlib.import_module("torchcodec.decoders")
    torch = importlib.import_module("torch")

    def decode(content: bytes) -> np.ndarray:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        # It would turn the picture as its EXIF says, and cannot be told not to; others leave that to their caller. So the
        # segment of the EXIF (marker APP1, two bytes of length, a name) becomes a comment.
        name = content.find(b"Exif\0\0", 0, 65536)
        if name >= 4 and content[name - 4 : name - 2] == b"\xff\xe1":
            data[name - 3] = 0xFE
        return decoders.decode_jpeg(data, mode=decoders.ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()

    return decode


_MAKERS = {"turbojpeg": _turbojpeg, "simplejpeg": _simplejpeg, "torchcodec": _torchcodec}
