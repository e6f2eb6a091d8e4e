"""Generalized R-CNN: backbone with pyramid, region proposals, and heads on regions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnest_det.detector.fpn import FPN
from resnest_det.detector.postprocess import rescale_detections
from resnest_det.detector.roi_heads import StandardROIHeads
from resnest_det.detector.rpn import RPN
from resnest_det.errors import UserError


class GeneralizedRCNN(nn.Module):
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
    bool, best first.
    """

    def __init__(self, *, backbone: FPN, proposal_generator: RPN, roi_heads: StandardROIHeads, pixel_mean: Sequence[float],
                 pixel_std: Sequence[float]):
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise UserError(f"MODEL.PIXEL_MEAN has {len(pixel_mean)} channels and MODEL.PIXEL_STD {len(pixel_std)}")
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batch: Sequence[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if not self.training:
            return self.inference(batch)
        images, image_sizes = self.preprocess(batch)
        targets = self.prepare_targets(batch, image_sizes)
        features = self.backbone(images)
        proposals, losses = self.proposal_generator(features, image_sizes, targets)
        return self.roi_heads.losses(features, [image.boxes for image in proposals], targets) | losses

    def inference(self, batch: Sequence[dict]) -> list[dict[str, Tensor]]:
        """Detections of each image, scaled to its `height` and `width`; what the model returns in evaluation mode."""
        images, image_sizes = self.preprocess(batch)
        features = self.backbone(images)
        proposals, _ = self.proposal_generator(features, image_sizes)
        detections = self.roi_heads.detect(features, [image.boxes for image in proposals], image_sizes)
        return [
            rescale_detections(image_detections, size, (sample.get("height", size[0]), sample.get("width", size[1])))
            for image_detections, size, sample in zip(detections, image_sizes, batch)
        ]

    def preprocess(self, batch: Sequence[dict]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalised images padded with zeros on the right and below to one size, and each one's own (height, width).

        Raises:
            UserError: an image has another number of channels than the pixel mean.
        """
        image_sizes = [tuple(sample["image"].shape[-2:]) for sample in batch]
        channels = len(self.pixel_mean)
        multiple = self.backbone.size_divisibility
        height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*image_sizes))
        images = self.pixel_mean.new_zeros(len(batch), channels, height, width)
        for padded, sample, (image_height, image_width) in zip(images, batch, image_sizes):
            image = sample["image"]
            if image.shape[0] != channels:
                raise UserError(f"{sample.get('file_name', 'image')}: {image.shape[0]} channels, MODEL.PIXEL_MEAN has {channels}")
            padded[:, :image_height, :image_width] = (image.to(self.device) - self.pixel_mean) / self.pixel_std
        return images, image_sizes

    def prepare_targets(self, batch: Sequence[dict], image_sizes: Sequence[tuple[int, int]]) -> list[dict]:
        """The targets on the model's device, with the `image_size`, the `name` and the `generator` (or None) of each image."""
        targets = []
        for i, (sample, image_size) in enumerate(zip(batch, image_sizes)):
            target = {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in sample["target"].items()}
            target["image_size"] = image_size
            target["name"] = sample.get("file_name", f"image {i} of the batch")
            target["generator"] = torch.Generator().manual_seed(sample["seed"]) if "seed" in sample else None
            targets.append(target)
        return targets
