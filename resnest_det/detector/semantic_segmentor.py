"""Semantic segmentation alone: a backbone, with or without a pyramid, and a semantic head."""

from collections.abc import Sequence

from torch import Tensor, nn

from resnest_det.detector.image_model import ImageModel
from resnest_det.detector.pixel_loss import PixelHead, enlarge, rescale_logits


class SemanticSegmentor(ImageModel):
    """Labels every pixel.

    Args:
        backbone: makes maps of images, by name.
        sem_seg_head: labels pixels from these maps.
        pixel_mean, pixel_std: of each channel of the input.
        auxiliary_head: learns the same labels from another map, for what that teaches the backbone; only training uses it.
        size_divisibility: what the sides of images are padded to a multiple of; None is what the backbone wants. With 1 an image
            alone is not padded: its logits are enlarged to its own size.

    A batch is a list of samples as `GeneralizedRCNN` takes them, of whose `target` only `sem_seg` is looked at: (H, W) integer
    classes of the pixels of `image`, the head's `ignore_value` where there is no label. In training mode the model returns a
    dict with `loss_sem_seg` and, of the auxiliary head, `loss_sem_seg_aux`; otherwise for each image a dict of `sem_seg`,
    (C, height, width) float32 logits at the size of the image itself.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: PixelHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        auxiliary_head: PixelHead | None = None,
        size_divisibility: int | None = None,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.sem_seg_head = sem_seg_head
        self.auxiliary_head = auxiliary_head
        self.own_divisibility = size_divisibility

    @property
    def size_divisibility(self) -> int:
        return super().size_divisibility if self.own_divisibility is None else self.own_divisibility

    def logits(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """(N, C, height, width) float32 logits of images padded to `size`."""
        return enlarge(self.sem_seg_head(features), size, self.sem_seg_head.align_corners)

    def losses(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], batch: Sequence[dict]
    ) -> dict[str, Tensor]:
        """`loss_sem_seg`; see `ImageModel.losses`."""
        targets = self.semantic_targets(batch, self.sem_seg_head.ignore_value)
        size, auxiliary = targets.shape[-2:], self.auxiliary_head
        losses = self.sem_seg_head.losses(self.logits(features, size), targets)
        if auxiliary is not None:
            logits = enlarge(auxiliary(features), size, auxiliary.align_corners)
            losses |= {f"{name}_aux": loss for name, loss in auxiliary.losses(logits, targets).items()}
        return losses

    def results(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """`sem_seg`; see `ImageModel.results`."""
        logits = self.logits(features, self.padded_size(image_sizes))
        align_corners = self.sem_seg_head.align_corners
        return [{"sem_seg": rescale_logits(*image, align_corners)} for image in zip(logits, image_sizes, output_sizes)]
