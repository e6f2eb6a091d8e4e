"""Pictures to try an exported detector on: scenes, a blank one and one with a single object."""

import numpy as np
from PIL import Image

from resnest_det.data.mapper import sample_of_pixels
from resnest_det.data.records import Sample
from resnest_det.data.shapes import draw_scene

SIZES = ((192, 256), (300, 220))  # (height, width) of the scenes


def generated_images(image_format: str) -> list[tuple[str, np.ndarray]]:
    """Names and pixels (H, W, C) uint8, in the channel order "RGB", "BGR" or "L"."""
    generator = np.random.default_rng(0)
    images = {}
    for number, (height, width) in enumerate(SIZES, 1):
        scene = Image.fromarray(draw_scene(generator)[0]).resize((width, height), Image.Resampling.BILINEAR)
        images[f"generated scene {number}"] = np.asarray(scene)
    images["a blank picture"] = np.full((160, 200, 3), 128, np.uint8)
    single = np.full((200, 200, 3), 90, np.uint8)
    single[60:130, 50:150] = (200, 40, 40)
    images["a picture of one object"] = single
    return [(name, _in_format(pixels, image_format)) for name, pixels in images.items()]


def _in_format(pixels: np.ndarray, image_format: str) -> np.ndarray:
    if image_format == "L":
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def sample_of(name: str, pixels: np.ndarray, short_side: int, max_side: int) -> Sample:
    """A sample for a model, of an image (H, W, C) uint8 that no dataset has."""
    record = {"file_name": name, "height": pixels.shape[0], "width": pixels.shape[1], "image_id": 0}
    return sample_of_pixels(record, pixels, short_side=short_side, max_side=max_side)
