"""From records of class folders and tar shards to batches of images with their classes."""

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from resnest_det.data.class_folders import LabelledRecord
from resnest_det.data.class_transforms import draw_lighting, seeded
from resnest_det.data.image import read_picture
from resnest_det.data.jpeg_decoders import jpeg_decoder
from resnest_det.errors import UserError


class LabelledImage(TypedDict):
    """`image` (3, S, S) uint8 RGB; `label` of its class; `lighting` (3,) to add to its pixels of 0 ... 1."""

    image: Tensor
    label: int
    lighting: Tensor
    file_name: str


@dataclass(frozen=True)
class LabelledImages:
    """A batch.

    Attributes:
        images: (N, 3, S, S) uint8 RGB.
        labels: (N,) int64.
        lighting: (N, 3) float32, see `LabelledImage`.
        file_names: of the images.
        unreadable: errors about images that should have been among them; others are there in their places.
    """

    images: Tensor
    labels: Tensor
    lighting: Tensor
    file_names: list[str]
    unreadable: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> "LabelledImages":
        return LabelledImages(self.images[part], self.labels[part], self.lighting[part], self.file_names[part])


def training_image(
    record: LabelledRecord, generator: np.random.Generator, *, transform: v2.Transform, lighting: float, decoder: str
) -> LabelledImage:
    """Read and augment one image.

    Args:
        generator: every random choice for this showing of the image comes from it.
        transform: see `resnest_det.data.class_transforms.training_transform`.
        lighting: strength of AlexNet's lighting; 0 for none.
        decoder: of JPEGs, see `jpeg_decoder`.

    Raises:
        UserError: the image cannot be read.
    """
    picture = _picture(record, decoder)
    with seeded(int(generator.integers(2**63))):
        image = transform(picture)
        return {"image": image, "label": record["label"], "lighting": draw_lighting(lighting), "file_name": record["file_name"]}


def evaluation_image(record: LabelledRecord, *, transform: v2.Transform, decoder: str) -> LabelledImage:
    """Read one image as it is evaluated; see `training_image`."""
    image = transform(_picture(record, decoder))
    return {"image": image, "label": record["label"], "lighting": torch.zeros(3), "file_name": record["file_name"]}


def _picture(record: LabelledRecord, decoder: str):
    content = None
    if "shard" in record:
        try:
            with open(record["shard"], "rb") as file:
                file.seek(record["offset"])
                content = file.read(record["size"])
        except OSError as error:
            raise UserError(f"image {record['file_name']} cannot be read: {error.strerror or error}") from error
    return read_picture(record["file_name"], content, jpeg_decoder(decoder))


def collate(samples: list[LabelledImage | UserError], *, strict: bool, fill: bool) -> LabelledImages | UserError:
    """One batch of samples.

    Args:
        strict: an image that cannot be read is an error, and not only told of.
        fill: in its place comes the image before it, so that the batch keeps its size; otherwise it is left out.

    Returns:
        the batch; or, if strict or if no image could be read, the error.
    """
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    good = [sample for sample in samples if not isinstance(sample, UserError)]
    if errors and (strict or (fill and not good)):
        return errors[0]
    if errors and fill:
        last, filled = good[0], []
        for sample in samples:
            last = last if isinstance(sample, UserError) else sample
            filled.append(last)
        good = filled
    return LabelledImages(
        torch.stack([sample["image"] for sample in good]) if good else torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
        torch.tensor([sample["label"] for sample in good], dtype=torch.int64),
        torch.stack([sample["lighting"] for sample in good]) if good else torch.zeros(0, 3),
        [sample["file_name"] for sample in good],
        [str(error) for error in errors],
    )
