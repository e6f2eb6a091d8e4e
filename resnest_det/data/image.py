"""Reading images as COCO's tools do: upright, in a given channel order, of the size the annotations say."""

import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from resnest_det.contents import what_it_is
from resnest_det.errors import UserError

# Pillow goes by the content of a file, not by its name, and runs other programs for some formats, such as Ghostscript for EPS.
# These are decoded in this process. A phone's JPEG may be an MPO.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# Pillow's own limit. Decoded, such an image takes 0.7 GB, a second time as an array, in each process that reads.
MAX_PIXELS = 178_956_970

# Headers are short and the disk may be a network away: what takes long is to wait, so many are read at a time.
READERS = 16

_CHUNK = 1 << 20

_EXIF_ORIENTATION = 274
# EXIF 2.3, tag 274: how the stored rows and columns have to be turned to stand upright. Pillow's exif_transpose decodes before
# the size is known, and leaves an image lying where another tag of a real photograph cannot be written back.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# Pillow's modes of one channel with 16 bits, and with 32, in which it also reads files of 16.
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def to_eight_bits(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """An image of any of Pillow's modes as "RGB" or as "L", the same wherever images are read.

    | file | becomes |
    |---|---|
    | 8 bits: grayscale, palette, CMYK, ... | what Pillow's `convert` gives; transparency is left away |
    | 16 bits, grayscale | divided by 257 and rounded: 65535 is white |
    | 16 bits, color | their high byte, as Pillow's decoder gives them: at most 1 away from that |
    | integers of 32 bits | as 16 bits; refused if one is below 0 or above 65535, or all are below 256: they may be 8 bits |
    | floats | 0 is black and 1 is white; refused if one is below 0, above 1 or not a number |

    Raises:
        UserError: values outside of what the table says.
    """
    if image.mode in _SIXTEEN_BITS or image.mode == "F":
        values, white = np.asarray(image), 1 if image.mode == "F" else 65535
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= white) or (image.mode == "I" and 0 < high < 256):  # a comparison with NaN is false
            raise UserError(
                f"{'float' if image.mode == 'F' else '32-bit integer'} pixels go from {low:g} to {high:g}, expected 0 for "
                f"black to {white} for white: scale them, or save 8 bits"
            )
        image = Image.fromarray((values * (255 / white) + 0.5).astype(np.uint8))
    return image.convert(mode)


class _File(io.BufferedReader):
    """A file of which nobody gets memory for more bytes than it has: damaged ones ask for gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _CHUNK:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


@contextmanager
def open_image(
    file_name: str | os.PathLike, formats: tuple[str, ...] = _FORMATS, content: bytes | None = None
) -> Iterator[Image.Image]:
    """`Image.open` for regular files in formats decoded in this process (AVIF if this Pillow has it).

    Args:
        content: of the file, if it is in memory; its name is then only for errors.

    Raises:
        OSError: the file is missing, not a regular file, or in none of these formats.
        UserError: its header says more than `MAX_PIXELS` pixels, or that it is something else that is known.
    """
    if content is None and os.path.exists(file_name) and not os.path.isfile(file_name):
        raise OSError("not a regular file")  # opening a pipe would wait for ever
    Image.init()
    with _File(io.FileIO(file_name)) if content is None else io.BytesIO(content) as file:
        try:
            image = Image.open(file, formats=[each for each in formats if each in Image.OPEN])
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UserError(f"{file_name} has too many pixels; at most {MAX_PIXELS} are read ({error})") from error
        except UnidentifiedImageError:
            file.seek(0)
            if said := what_it_is(file.read(512)):
                raise UserError(f"image {os.fspath(file_name)} {said}") from None
            raise UnidentifiedImageError(f"cannot identify image file {os.fspath(file_name)!r}") from None
        with image:
            yield image


def png_header(file_name: str | os.PathLike, what: str) -> tuple[tuple[int, int], int, int]:
    """Size (height, width), bits of a channel and color type (PNG specification, 11.2.2) of a PNG. Only its first bytes are read.

    Args:
        what: the file is, for the error.

    Raises:
        UserError: it cannot be read, or is not a PNG.
    """
    try:
        with open(file_name, "rb") as file:
            head = file.read(26)
    except OSError as error:
        raise UserError(f"{what} {file_name} cannot be read: {error.strerror or error}") from error
    if len(head) < 26 or not head.startswith(b"\x89PNG\r\n\x1a\n") or head[12:16] != b"IHDR":
        raise UserError(f"{what} {file_name} is not a PNG file")
    width, height, bits, kind = struct.unpack(">IIBB", head[16:26])
    return (height, width), bits, kind


def read_image(
    file_name: str,
    image_format: str,
    size: tuple[int, int] | None = None,
    size_is: str = "annotations say",
    content: bytes | None = None,
) -> np.ndarray:
    """Read an image file of any mode (see `to_eight_bits`), turned upright by its EXIF orientation.

    Args:
        image_format: "BGR", "RGB" or "L".
        size: (height, width) that the upright image has to have. Looked at in the file's header, before anything is decoded.
        size_is: what says so, with its verb, for the error.
        content: see `open_image`.

    Returns:
        (H, W, C) uint8, C = 1 for "L" and 3 otherwise.

    Raises:
        UserError: the file is missing, not an image, damaged, or of another size; the message names it.
    """
    image = _read_upright(file_name, "L" if image_format == "L" else "RGB", size, size_is, content)
    pixels = np.asarray(image)
    if image_format == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def read_picture(
    file_name: str, content: bytes | None = None, decode_jpeg: Callable[[bytes], np.ndarray] | None = None
) -> Image.Image:
    """Read an image file as `read_image` does, as a Pillow image of mode "RGB".

    Args:
        content: see `open_image`.
        decode_jpeg: another library's decoder, from the content of a JPEG to (H, W, 3) uint8 RGB as it is stored.

    Raises:
        UserError: see `read_image`.
    """
    if decode_jpeg is None:
        return _read_upright(file_name, "RGB", None, "", content)
    with _named(file_name):
        if content is None:
            content = Path(file_name).read_bytes()
        with open_image(file_name, content=content) as header:
            if header.format != "JPEG" or header.mode not in ("RGB", "L"):
                return _read_upright(file_name, "RGB", None, "", content)
            turn, size = _UPRIGHT.get(_exif_orientation(header)), header.size
        image = Image.fromarray(decode_jpeg(content))
        if image.size != size:
            raise UserError(f"image {file_name} is decoded to {image.size}, but its header says {size} (width x height)")
    return image if turn is None else image.transpose(turn)


def _read_upright(file_name: str, mode: str, size: tuple[int, int] | None, size_is: str, content: bytes | None) -> Image.Image:
    with _named(file_name), open_image(file_name, content=content) as image:
        if image.format == "TIFF":
            image.load()  # turns it, and says no longer that it has to be turned
        orientation = _exif_orientation(image)
        if size is not None:
            _check_size(image, orientation, file_name, size, size_is)
        turn = _UPRIGHT.get(orientation)
        image = image if turn is None else image.transpose(turn)
        image.load()
        try:
            return to_eight_bits(image, mode)
        except UserError as error:
            raise UserError(f"image {file_name}: {error}") from None


@contextmanager
def _named(file_name: str) -> Iterator[None]:
    """Turn whatever goes wrong with an image file into a UserError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"image {file_name} does not exist") from error
    except (MemoryError, UserError):
        raise
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"image {file_name} cannot be read, it is damaged or not an image: {reason}") from error


def _check_size(image: Image.Image, orientation: int | None, file_name: str, size: tuple[int, int], size_is: str) -> None:
    """That an opened image is (height, width) = `size` when it stands upright."""
    width, height = reversed(image.size) if orientation in _SIDEWAYS else image.size
    if (height, width) == size:
        return
    problem = f"image {file_name} is {width} x {height} pixels (width x height)"
    problem += f", turned upright by its EXIF orientation {orientation}" if orientation in _SIDEWAYS else ""
    problem += f", but its {size_is} {size[1]} x {size[0]}"
    if orientation in _SIDEWAYS and image.size == (size[1], size[0]):
        problem += ", as it is stored: annotate it upright, or take the orientation out of the file"
    raise UserError(problem)


def read_record_image(record: dict, image_format: str) -> np.ndarray:
    """The image of a dataset record, (H, W, C) uint8.

    Raises:
        UserError: see `read_image`; or the image's size is not the record's.
    """
    return read_image(record["file_name"], image_format, *_size_of(record))


def check_record_size(record: dict) -> None:
    """That the header of a record's image file says the record's size; nothing is decoded where it does.

    Raises:
        UserError: see `read_record_image`.
    """
    file_name, (size, size_is) = record["file_name"], _size_of(record)
    with _named(file_name), open_image(file_name) as image:
        try:
            # Not a PNG's own getexif: it decodes the file, as the orientation may stand after the pixels.
            orientation = None if image.format == "TIFF" else Image.Image.getexif(image).get(_EXIF_ORIENTATION)
        except Exception:
            orientation = None
        fits = (image.size if orientation in _SIDEWAYS else image.size[::-1]) == size
    if not fits:
        read_image(file_name, "RGB", size, size_is)


def _size_of(record: dict) -> tuple[tuple[int, int], str]:
    size_is = f"label PNG {record['label_png'].file_name} is" if "label_png" in record else "annotations say"
    return (record["height"], record["width"]), size_is


def upright_size(file_name: str | os.PathLike, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) of an image file, turned upright by its EXIF orientation; only the header is read.

    Args:
        content: see `open_image`.

    Raises:
        UserError: the file is missing or not an image; the message names it.
    """
    try:
        with open_image(file_name, content=content) as image:
            width, height = reversed(image.size) if _exif_orientation(image) in _SIDEWAYS else image.size
    except UserError:
        raise
    except Exception as error:  # see `read_image`
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"image {file_name} cannot be read, it is damaged or not an image: {reason}") from error
    return height, width


def _exif_orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    # Some real photographs have EXIF blocks that do not parse, and good pixels.
    except Exception:
        return None
