"""Generalized R-CNN: backbone with pyramid, region proposals, and heads on regions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from resnest_det.detector.fpn import FPN
from resnest_det.detector.image_model import ImageModel
from resnest_det.detector.postprocess import rescale_detections
from resnest_det.detector.roi_heads import StandardROIHeads
from resnest_det.detector.rpn import RPN


class GeneralizedRCNN(ImageModel):
    """Faster, Mask or Cascade R-CNN.

    Args:
        backbone: makes pyramid maps of images.
        proposal_generator: proposes boxes.
        roi_heads: classifies and refines them.
        pixel_mean, pixel_std: of each channel of the input.

    A batch is a list of samples, dicts with

    - `image`: (C, H, W) uint8 or float;
    - `height`, `width`: size of the image itself, to which detections are scaled (default: that of `image`);
    - `target`, for training: `boxes` (M, 4) float32 XYXY in the pixels of `image`, `labels` (M,) int64 and, with a mask head,
      `masks` (see `crop_masks`);
    - `seed`, optional, for training: an integer that decides which anchors and proposals are drawn; otherwise the global
      generator does;
    - `file_name`, optional, for messages.

    In training mode the model returns a dict of losses (0-d tensors); otherwise for each image a dict of `boxes` (D, 4) float32
    XYXY in the pixels of the image itself, `scores` (D,), `classes` (D,) int64 and, with a mask head, `masks` (D, height, width)
    bool, or `CompactMasks` where `compact_masks` is set; best first.
    """

    compact_masks = False

    def __init__(
        self,
        *,
        backbone: FPN,
        proposal_generator: RPN,
        roi_heads: StandardROIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def losses(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], batch: Sequence[dict]
    ) -> dict[str, Tensor]:
        """Losses of the proposals and of the heads on regions; see `ImageModel.losses`."""
        targets = self.prepare_targets(batch, image_sizes)
        proposals, losses = self.proposal_generator(features, image_sizes, targets)
        return self.roi_heads.losses(features, [image.boxes for image in proposals], targets) | losses

    def results(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]]
    ) -> list[dict]:
        """Detections; see `ImageModel.results`."""
        proposals, _ = self.proposal_generator(features, image_sizes)
        detections = self.roi_heads.detect(features, [image.boxes for image in proposals], image_sizes)
        return rescale_detections(detections, image_sizes, output_sizes, compact=self.compact_masks)

    def prepare_targets(self, batch: Sequence[dict], image_sizes: Sequence[tuple[int, int]]) -> list[dict]:
        """The targets on the model's device, with the `image_size`, the `name` and the `generator` (or None) of each image."""
        targets = []
        for i, (sample, image_size) in enumerate(zip(batch, image_sizes)):
            target = dict(sample["target"])
            target |= {
                key: value.to(self.device, non_blocking=True) for key, value in target.items() if isinstance(value, Tensor)
            }
            target["image_size"] = image_size
            target["name"] = sample.get("file_name", f"image {i} of the batch")
            target["generator"] = torch.Generator().manual_seed(sample["seed"]) if "seed" in sample else None
            targets.append(target)
        return targets
