"""What every model here does with images before anything else: normalise them and pad them into one batch."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnest_det.backbone.recomputation import recomputing
from resnest_det.errors import ArgumentError, UserError


class ImageModel(nn.Module):
    """A backbone and the normalisation of its input.

    Args:
        backbone: has `size_divisibility`, what the sides of its input must be a multiple of, in pixels.
        pixel_mean, pixel_std: of each channel of the input.
    """

    def __init__(self, backbone: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ArgumentError(
                "pixel_mean", f"has {len(pixel_mean)} values and pixel_std {len(pixel_std)}; each channel needs both"
            )
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """What the sides of images are padded to a multiple of, in pixels."""
        return self.backbone.size_divisibility

    def forward(self, batch: Sequence[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses by name in training mode, otherwise a dict of results for each image; see the class."""
        images, image_sizes = self.preprocess(batch)
        if self.training:
            with recomputing(images):
                return self.losses(self.backbone(images), image_sizes, batch)
        return self.results(self.backbone(images), image_sizes, output_sizes(batch, image_sizes))

    @abstractmethod
    def losses(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], batch: Sequence[dict]
    ) -> dict[str, Tensor]:
        """Losses (0-d) by name, whose sum is to be minimised.

        Args:
            features: maps by name.
            image_sizes: (height, width) of each image before padding.
        """

    @abstractmethod
    def results(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """What is found in each image, scaled from `image_sizes` to `output_sizes`, (height, width) of each."""

    def preprocess(self, batch: Sequence[dict]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalised images padded with zeros on the right and below to one size, and each one's own (height, width).

        Raises:
            UserError: an image has another number of channels than the pixel mean.
        """
        channels = len(self.pixel_mean)
        for sample in batch:
            if sample["image"].shape[0] != channels:
                name = sample.get("file_name", "image")
                raise UserError(f"{name}: {sample['image'].shape[0]} channels, but the model's pixel mean has {channels}")
        images = [(sample["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std for sample in batch]
        return self.pad(images, 0.0), [tuple(image.shape[-2:]) for image in images]

    def semantic_targets(self, batch: Sequence[dict], ignore_value: int) -> Tensor:
        """The labels of a batch's pixels (N, H, W) on the model's device, filled up with `ignore_value` as the images are.

        Raises:
            UserError: a sample has no labels, or they are not of its image's size.
        """
        labels = []
        for i, sample in enumerate(batch):
            name = sample.get("file_name", f"image {i} of the batch")
            image_labels = sample["target"].get("sem_seg")
            if image_labels is None:
                raise UserError(f"{name}: no semantic labels to learn from")
            if image_labels.shape != sample["image"].shape[-2:]:
                raise UserError(
                    f"{name}: labels of {tuple(image_labels.shape)} pixels, image of {tuple(sample['image'].shape[-2:])}"
                )
            labels.append(
                image_labels.to(self.device, non_blocking=True).long()
            )  # a byte does not hold every value to fill up with
        return self.pad(labels, ignore_value)

    def padded_size(self, image_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(height, width) that images of these are padded to in a batch."""
        multiple = self.size_divisibility
        height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*image_sizes))
        return height, width

    def pad(self, maps: Sequence[Tensor], value: float) -> Tensor:
        """(..., H, W) maps of the images as one batch, filled up with `value` to the size that the images have there."""
        height, width = self.padded_size([image.shape[-2:] for image in maps])
        padded = maps[0].new_full((len(maps), *maps[0].shape[:-2], height, width), value)
        for target, image in zip(padded, maps):
            target[..., : image.shape[-2], : image.shape[-1]] = image
        return padded


def output_sizes(batch: Sequence[dict], image_sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(height, width) that the results of each sample are scaled to: what it says of its file, else the size of its image."""
    return [(sample.get("height", size[0]), sample.get("width", size[1])) for sample, size in zip(batch, image_sizes)]
