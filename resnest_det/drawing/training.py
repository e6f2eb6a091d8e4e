"""A picture of what the model finds in a training image, beside the truth (VIS_PERIOD)."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from resnest_det.data.records import Sample
from resnest_det.drawing.comparison import draw_comparison
from resnest_det.evaluation.masks import segmentation_to_mask


def training_picture(model: nn.Module, sample: Sample, image_format: str, class_names: list[str]) -> np.ndarray:
    """An augmented training image with the truth (left) and the prediction (right).

    Args:
        sample: from the training loader: `image` (C, H, W) uint8 and `target`.
        image_format: "RGB", "BGR" or "L", the order of its channels.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    image = sample["image"]
    height, width = image.shape[-2:]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            prediction = model([{"image": image, "height": height, "width": width}])[0]
    finally:
        model.train(was_training)
    return np.asarray(draw_comparison(sample_image(sample, image_format), sample_truth(sample), prediction, class_names))


def sample_image(sample: Sample, image_format: str) -> Image.Image:
    """The image of a sample, RGB."""
    pixels = sample["image"].flip(0) if image_format == "BGR" else sample["image"].expand(3, -1, -1)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def sample_truth(sample: Sample) -> dict:
    """The objects of a training sample as `draw_comparison` takes them."""
    target = sample["target"]
    truth = {"boxes": target["boxes"], "classes": target["labels"]}
    if "masks" in target and len(target["masks"]):
        truth["masks"] = _bitmasks(target["masks"], *sample["image"].shape[-2:])
    return truth


def _bitmasks(masks: Tensor | list[list[np.ndarray]], height: int, width: int) -> Tensor:
    if isinstance(masks, Tensor):
        return masks.bool()
    drawn = [segmentation_to_mask([polygon.tolist() for polygon in polygons], height, width) for polygons in masks]
    return torch.from_numpy(np.stack(drawn)).bool()
