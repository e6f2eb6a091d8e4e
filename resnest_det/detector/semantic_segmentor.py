"""Semantic segmentation alone: a backbone, with or without a pyramid, and a semantic head."""

from collections.abc import Sequence

from torch import Tensor, nn

from resnest_det.detector.image_model import ImageModel
from resnest_det.detector.semantic_head import SemSegFPNHead, rescale_logits


class SemanticSegmentor(ImageModel):
    """Labels every pixel.

    Args:
        backbone: makes maps of images, by name.
        sem_seg_head: labels pixels from these maps.
        pixel_mean, pixel_std: of each channel of the input.

    A batch is a list of samples as `GeneralizedRCNN` takes them, of whose `target` only `sem_seg` is looked at: (H, W) integer
    classes of the pixels of `image`, the head's `ignore_value` where there is no label. In training mode the model returns a
    dict with `loss_sem_seg`; otherwise for each image a dict of `sem_seg`, (C, height, width) float32 logits at the size of the
    image itself.
    """

    def __init__(
        self, *, backbone: nn.Module, sem_seg_head: SemSegFPNHead, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.sem_seg_head = sem_seg_head

    def losses(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], batch: Sequence[dict]
    ) -> dict[str, Tensor]:
        """`loss_sem_seg`; see `ImageModel.losses`."""
        return self.sem_seg_head.losses(self.sem_seg_head(features), self.semantic_targets(batch, self.sem_seg_head.ignore_value))

    def results(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """`sem_seg`; see `ImageModel.results`."""
        sizes = zip(self.sem_seg_head(features), image_sizes, output_sizes)
        return [{"sem_seg": rescale_logits(*image)} for image in sizes]
