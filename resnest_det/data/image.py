"""Reading images as COCO's tools see them: upright, in the channel order asked for, of the size the annotations say."""

import numpy as np
from PIL import Image

from resnest_det.errors import UserError

_EXIF_ORIENTATION = 274
# EXIF 2.3, tag 274: how the stored rows and columns have to be turned to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Read an image file of any mode (grayscale, palette, CMYK, ...), turned upright by its EXIF orientation.

    Args:
        image_format: "BGR", "RGB" or "L".

    Returns:
        (H, W, C) uint8, C = 1 for "L" and 3 otherwise.

    Raises:
        UserError: the file is missing, is not an image, or is damaged; the message names it.
    """
    try:
        with Image.open(file_name) as image:
            image = _turn_upright(image)
            image = image.convert("L" if image_format == "L" else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"image {file_name} does not exist") from error
    except MemoryError:
        raise
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"image {file_name} cannot be read, it is damaged or not an image: {reason}") from error
    pixels = np.asarray(image)
    if image_format == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def read_record_image(record: dict, image_format: str) -> np.ndarray:
    """The image of a dataset record, (H, W, C) uint8.

    Raises:
        UserError: see `read_image`; also when the image's size is not the record's.
    """
    pixels = read_image(record["file_name"], image_format)
    height, width = pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise UserError(
            f"image {record['file_name']} is {width} x {height} pixels (width x height), but its annotations say "
            f"{record['width']} x {record['height']}"
        )
    return pixels


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    # Real photographs carry EXIF blocks that do not parse; their pixels are good.
    except Exception:
        return image
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)
