"""Semantic segmentation alone: a backbone, with or without a pyramid, and a semantic head."""

from collections.abc import Sequence

from torch import Tensor, nn

from resnest_det.detector.image_model import ImageModel, output_sizes
from resnest_det.detector.semantic_head import SemSegFPNHead, rescale_logits
from resnest_det.errors import UserError


class SemanticSegmentor(ImageModel):
    """Labels every pixel.

    Args:
        backbone: makes maps of images, by name.
        sem_seg_head: labels pixels from these maps.
        pixel_mean, pixel_std: of each channel of the input.

    A batch is a list of samples as `GeneralizedRCNN` takes them, of whose `target` only `sem_seg` is looked at: (H, W) integer
    classes of the pixels of `image`, the head's `ignore_value` where there is no label. In training mode the model returns a dict with
    `loss_sem_seg`; otherwise for each image a dict of `sem_seg`, (C, height, width) float32 logits at the size of the image
    itself.
    """

    def __init__(
        self, *, backbone: nn.Module, sem_seg_head: SemSegFPNHead, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.sem_seg_head = sem_seg_head

    def forward(self, batch: Sequence[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        images, image_sizes = self.preprocess(batch)
        logits = self.sem_seg_head(self.backbone(images))
        if self.training:
            return self.sem_seg_head.losses(logits, semantic_targets(self, batch))
        sizes = zip(logits, image_sizes, output_sizes(batch, image_sizes))
        return [{"sem_seg": rescale_logits(*image)} for image in sizes]


def semantic_targets(model: ImageModel, batch: Sequence[dict]) -> Tensor:
    """The labels of a batch (N, H, W) on the model's device, filled up as the images are with the head's `ignore_value`.

    Raises:
        UserError: a sample has no labels, or they are not of its image's size.
    """
    labels = []
    for i, sample in enumerate(batch):
        name = sample.get("file_name", f"image {i} of the batch")
        image_labels = sample["target"].get("sem_seg")
        if image_labels is None:
            raise UserError(
                f"{name}: no semantic labels to learn from; DATASETS.TRAIN must name a dataset whose pixels have labels"
            )
        if image_labels.shape != sample["image"].shape[-2:]:
            raise UserError(f"{name}: labels of {tuple(image_labels.shape)} pixels, image of {tuple(sample['image'].shape[-2:])}")
        labels.append(image_labels.to(model.device).long())  # a byte would not hold any value to fill up with
    return model.pad(labels, model.sem_seg_head.ignore_value)
