"""What every model here does with images before anything else: normalise them and pad them into one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnest_det.errors import UserError


class ImageModel(nn.Module):
    """A backbone and the normalisation of its input.

    Args:
        backbone: has `size_divisibility`, what the sides of its input must be a multiple of, in pixels.
        pixel_mean, pixel_std: of each channel of the input.
    """

    def __init__(self, backbone: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise UserError(f"MODEL.PIXEL_MEAN has {len(pixel_mean)} channels and MODEL.PIXEL_STD {len(pixel_std)}")
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess(self, batch: Sequence[dict]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalised images padded with zeros on the right and below to one size, and each one's own (height, width).

        Raises:
            UserError: an image has another number of channels than the pixel mean.
        """
        channels = len(self.pixel_mean)
        for sample in batch:
            if sample["image"].shape[0] != channels:
                name = sample.get("file_name", "image")
                raise UserError(f"{name}: {sample['image'].shape[0]} channels, MODEL.PIXEL_MEAN has {channels}")
        images = [(sample["image"].to(self.device) - self.pixel_mean) / self.pixel_std for sample in batch]
        return self.pad(images, 0.0), [tuple(image.shape[-2:]) for image in images]

    def pad(self, maps: Sequence[Tensor], value: float) -> Tensor:
        """(..., H, W) maps of the images as one batch, filled up with `value` to the size that the images have there."""
        multiple = self.backbone.size_divisibility
        height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*(image.shape[-2:] for image in maps)))
        padded = maps[0].new_full((len(maps), *maps[0].shape[:-2], height, width), value)
        for target, image in zip(padded, maps):
            target[..., : image.shape[-2], : image.shape[-1]] = image
        return padded


def output_sizes(batch: Sequence[dict], image_sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(height, width) that the results of each sample are scaled to: what it says of its file, else the size of its image."""
    return [(sample.get("height", size[0]), sample.get("width", size[1])) for sample, size in zip(batch, image_sizes)]
