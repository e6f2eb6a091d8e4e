"""Colors of a training image changed at random, as SSD does it (arXiv:1512.02325, section 2.2) and Detectron2 after it.

Values are whole numbers from 0 to 255 between the steps, and hue, saturation and value are those of OpenCV's 8-bit HSV: hue from
0 to 179, so that the same draw gives the colors of Detectron2's ColorAugSSDTransform but for the rounding of the conversions.
"""

from dataclasses import dataclass

import numpy as np

BRIGHTNESS = 32.0  # added or taken away at most
CONTRAST = SATURATION = (0.5, 1.5)  # factors
HUE = 18  # of 180, at most
_HUES = 180


@dataclass(frozen=True)
class Recolor:
    """What is done to the colors of an image of `size` (height, width); None leaves them.

    Attributes:
        brightness: added to every channel.
        contrast, saturation: factors.
        hue: added to the hue, in 180ths of the circle.
        contrast_first: before saturation and hue, not after them.
        bgr: the order of the channels is blue, green, red.
    """

    size: tuple[int, int]
    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: int | None
    contrast_first: bool
    bgr: bool

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the same."""
        if self.brightness is not None:
            pixels = _rounded_down(pixels.astype(np.float32) + np.float32(self.brightness))
        if self.contrast_first:
            return self._with_hue(self._with_contrast(pixels))
        return self._with_contrast(self._with_hue(pixels))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        return mask

    def points(self, points: np.ndarray) -> np.ndarray:
        return points

    def polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return polygons

    def _with_contrast(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self.contrast is None else _rounded_down(pixels.astype(np.float32) * np.float32(self.contrast))

    def _with_hue(self, pixels: np.ndarray) -> np.ndarray:
        if self.saturation is None and self.hue is None:
            return pixels
        hue, saturation, value = to_hsv(pixels[:, :, ::-1] if self.bgr else pixels)
        if self.saturation is not None:
            saturation = np.floor(np.clip(saturation * np.float32(self.saturation), 0, 255))
        if self.hue is not None:
            hue = (hue + self.hue) % _HUES
        colors = from_hsv(hue, saturation, value)
        return colors[:, :, ::-1] if self.bgr else colors


@dataclass(frozen=True)
class RandomColor:
    """Change brightness, contrast, saturation and hue, each of every second image on average.

    Args:
        bgr: the order of the channels is blue, green, red.
    """

    bgr: bool

    def draw(self, height: int, width: int, generator: np.random.Generator, labels: np.ndarray | None = None) -> Recolor:
        """Evenly between the limits of this module."""
        brightness, contrast, saturation, hue, contrast_first = generator.random(5) < 0.5
        return Recolor(
            (height, width),
            generator.uniform(-BRIGHTNESS, BRIGHTNESS) if brightness else None,
            generator.uniform(*CONTRAST) if contrast else None,
            generator.uniform(*SATURATION) if saturation else None,
            int(generator.integers(-HUE, HUE + 1)) if hue else None,
            bool(contrast_first),
            self.bgr,
        )


def to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB -> hue 0 to 179, saturation and value 0 to 255, (H, W) float32 whole numbers."""
    red, green, blue = np.moveaxis(pixels.astype(np.float32), 2, 0)
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    saturation = np.rint(255 * span / np.maximum(value, 1))
    of_sixth = 30 / np.maximum(span, 1)
    hue = np.where(
        value == red,
        (green - blue) * of_sixth,
        np.where(value == green, 60 + (blue - red) * of_sixth, 120 + (red - green) * of_sixth),
    )
    return np.rint(hue) % _HUES, saturation, value


def from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The opposite of `to_hsv`: (H, W, 3) uint8 RGB."""
    sixth, chroma = hue / 30, value * saturation / 255
    # Of each channel how far it is from its own hue around the circle: red 0, green 2, blue 4 sixths.
    channels = [
        value - chroma * np.clip(np.minimum(place, 4 - place), 0, 1) for place in ((sixth + offset) % 6 for offset in (5, 3, 1))
    ]
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def _rounded_down(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 255).astype(np.uint8)
