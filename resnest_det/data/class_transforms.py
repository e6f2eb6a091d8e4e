"""Augmentation of images for classification, from torchvision's v2 transforms where they have it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from resnest_det.errors import ArgumentError

CROPS = ("resized", "efficientnet")
TEST_CROPS = ("resize", "authors")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
POLICIES = ("", "imagenet", "cifar10", "svhn")

# The principal components of the colors of ImageNet's pixels, 0 ... 1: AlexNet's lighting, in the figures of Torch's
# fb.resnet.torch, which GluonCV and the authors use as well.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_ATTEMPTS = 10


class EfficientNetCrop(v2.Transform):
    """The random crop of EfficientNet and AutoAugment, resized: its ratio and its height are uniform, not its area.

    Where ten attempts find none, the centre as `AuthorsCenterCrop` takes it.

    Args:
        size: of the result, in pixels.
        area: of the crop, as shares of the image.
        ratio: width to height.
        interpolation: one of `INTERPOLATIONS`.
    """

    def __init__(self, size: int, area=(0.1, 1.0), ratio=(3 / 4, 4 / 3), interpolation: str = "bicubic"):
        super().__init__()
        self.size, self.area, self.ratio, self.interpolation = size, area, ratio, InterpolationMode(interpolation)

    def make_params(self, flat_inputs: list) -> dict:
        height, width = F.get_size(flat_inputs[0])
        least, most = (share * height * width for share in self.area)
        for _ in range(_ATTEMPTS):
            ratio = _uniform(*self.ratio)
            lowest, highest = math.sqrt(least / ratio), min(math.sqrt(most / ratio), height, width / ratio)
            if lowest > highest:
                continue
            tall = round(_uniform(lowest, highest))
            wide = round(tall * ratio)
            if tall <= height and wide <= width and least <= tall * wide <= most:
                top = int(torch.randint(height - tall + 1, ()))
                left = int(torch.randint(width - wide + 1, ()))
                return {"box": (top, left, tall, wide)}
        return {"box": _centre(height, width, self.size)}

    def transform(self, inpt, params: dict):
        return F.resized_crop(inpt, *params["box"], [self.size, self.size], self.interpolation, antialias=True)


class AuthorsCenterCrop(v2.Transform):
    """The centre square of size / (size + 32) of the short side, resized: what the authors' figures were measured with."""

    def __init__(self, size: int, interpolation: str = "bicubic"):
        super().__init__()
        self.size, self.interpolation = size, InterpolationMode(interpolation)

    def transform(self, inpt, params: dict):
        box = _centre(*F.get_size(inpt), self.size)
        return F.resized_crop(inpt, *box, [self.size, self.size], self.interpolation, antialias=True)


def _centre(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    # Rounded where the authors and Pillow's `crop` round: another order is a pixel off at some sizes.
    side = max(1, size / (size + 32) * min(height, width))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return top, left, round(top + side) - top, round(left + side) - left


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def training_transform(
    crop_size: int,
    *,
    crop: str = "resized",
    area: tuple[float, float] = (0.08, 1.0),
    interpolation: str = "bilinear",
    flip: float = 0.5,
    auto_augment: str = "",
    rand_augment: tuple[int, int] | None = None,
    color_jitter: float = 0.0,
) -> v2.Compose:
    """From a Pillow image to what is trained on, (3, crop_size, crop_size) uint8; draws come from torch's global generator.

    Args:
        crop: "resized" (torchvision's RandomResizedCrop) or "efficientnet".
        area: of the crop, as shares of the image.
        interpolation: one of `INTERPOLATIONS`.
        flip: the probability of mirroring.
        auto_augment: a policy of `POLICIES`, before the crop as the authors have it.
        rand_augment: number of operations and magnitude (of 31), likewise.
        color_jitter: how far brightness, contrast and saturation change.

    Raises:
        ArgumentError: a value that cannot be used.
    """
    if crop not in CROPS:
        raise ArgumentError("crop", f"is {crop!r}; supported: {', '.join(map(repr, CROPS))}")
    _check_interpolation(interpolation)
    if crop_size < 1:
        raise ArgumentError("crop_size", f"is {crop_size}; it must be at least 1")
    if not 0 < area[0] <= area[1] <= 1:
        raise ArgumentError("area", f"is {tuple(area)}; expected two shares of the image, above 0, up to 1, the lower first")
    if auto_augment not in POLICIES:
        raise ArgumentError("auto_augment", f"is {auto_augment!r}; supported: {', '.join(map(repr, POLICIES))}")
    if not color_jitter >= 0:
        raise ArgumentError("color_jitter", f"is {color_jitter}; it must not be negative")
    steps: list[Callable] = []
    if auto_augment:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(auto_augment), InterpolationMode.BILINEAR))
    if rand_augment is not None:
        number, magnitude = rand_augment
        if number < 1 or not 0 <= magnitude <= 30:
            raise ArgumentError("rand_augment", f"is {rand_augment}; expected 1 or more operations, and a magnitude from 0 to 30")
        steps.append(v2.RandAugment(number, magnitude, interpolation=InterpolationMode.BILINEAR))
    if crop == "resized":
        steps.append(v2.RandomResizedCrop(crop_size, area, interpolation=InterpolationMode(interpolation), antialias=True))
    else:
        steps.append(EfficientNetCrop(crop_size, area, interpolation=interpolation))
    steps.append(v2.RandomHorizontalFlip(flip))
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return v2.Compose([*steps, v2.PILToTensor()])


def evaluation_transform(
    crop_size: int, *, crop: str = "resize", share: float = 0.875, interpolation: str = "bicubic"
) -> v2.Compose:
    """From a Pillow image to what is evaluated, (3, crop_size, crop_size) uint8.

    Args:
        crop: "resize", the short side to crop_size / share and the centre of that; or "authors", see `AuthorsCenterCrop`.
        share: of the short side, of a "resize".
        interpolation: one of `INTERPOLATIONS`.

    Raises:
        ArgumentError: a value that cannot be used.
    """
    if crop not in TEST_CROPS:
        raise ArgumentError("crop", f"is {crop!r}; supported: {', '.join(map(repr, TEST_CROPS))}")
    _check_interpolation(interpolation)
    if crop == "authors":
        return v2.Compose([AuthorsCenterCrop(crop_size, interpolation), v2.PILToTensor()])
    if not 0 < share <= 1:
        raise ArgumentError("share", f"is {share}; it must be above 0, up to 1")
    resize = v2.Resize(math.floor(crop_size / share), InterpolationMode(interpolation), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(crop_size), v2.PILToTensor()])


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ArgumentError("interpolation", f"is {interpolation!r}; supported: {', '.join(map(repr, INTERPOLATIONS))}")


def draw_lighting(strength: float) -> Tensor:
    """What AlexNet's lighting adds to an image's pixels of 0 ... 1: (3,) float32, RGB, drawn from torch's global generator."""
    if not strength:
        return torch.zeros(3)
    return torch.tensor(EIGENVECTORS) @ (torch.empty(3).normal_(0, strength) * torch.tensor(EIGENVALUES))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's global generator on the CPU begins with `seed`; afterwards it is as it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
