"""The mask head of Mask R-CNN (arXiv:1703.06870) and the targets that it learns from."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torchvision.ops import roi_align

from resnest_det.backbone.layers import Conv2d, get_norm
from resnest_det.distributed import mean_count

MIN_SIDE = 0.1  # pixels: a thinner box is treated as this wide when polygons are scaled to it


class MaskRCNNConvUpsampleHead(nn.Module):
    """3x3 convolutions `mask_fcn1`, ..., a doubling transposed convolution `deconv` and a 1x1 `predictor`.

    Args:
        in_channels: of the pooled regions.
        num_classes: 1 predicts one mask for all classes.
        num_conv, conv_dim: number of 3x3 convolutions, and channels of all of these and of `deconv`.
        norm: of the 3x3 convolutions, see `get_norm`.
    """

    def __init__(self, in_channels: int, num_classes: int, num_conv: int = 4, conv_dim: int = 256, norm: str = ""):
        super().__init__()
        self.num_conv = num_conv
        for i in range(1, num_conv + 1):
            conv = Conv2d(
                in_channels,
                conv_dim,
                3,
                padding=1,
                bias=not norm,
                norm=get_norm(norm, conv_dim),
                activation=nn.ReLU(inplace=True),
            )
            c2_msra_fill(conv)
            self.add_module(f"mask_fcn{i}", conv)
            in_channels = conv_dim
        self.deconv = nn.ConvTranspose2d(in_channels, conv_dim, 2, stride=2)
        c2_msra_fill(self.deconv)
        self.predictor = Conv2d(conv_dim, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Mask logits (R, 2 * P, 2 * P) of the given `classes` (R,) for pooled regions (R, in_channels, P, P)."""
        for i in range(1, self.num_conv + 1):
            x = getattr(self, f"mask_fcn{i}")(x)
        x = self.predictor(F.relu_(self.deconv(x)))
        if x.shape[1] == 1:
            return x[:, 0]
        return x[torch.arange(x.shape[0], device=x.device), classes]


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over all cells of all masks (R, M, M); zero, with gradients, when there is no mask."""
    count = mean_count(logits.numel(), logits.device)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / count


def mask_targets(
    masks: Sequence[Sequence[Sequence[np.ndarray]] | Tensor], objects: Sequence[Tensor], boxes: Sequence[Tensor], size: int
) -> Tensor:
    """`crop_masks` for all images of a batch, whose `masks`, `objects` and `boxes` these are: (R, size, size) bool."""
    device = boxes[0].device
    if not any(isinstance(image_masks, Tensor) for image_masks in masks):
        # Polygons are drawn on the host, which gets what it needs in one copy.
        counts = [len(image_boxes) for image_boxes in boxes]
        rows = torch.cat((torch.cat(list(boxes)), torch.cat(list(objects))[:, None].to(boxes[0].dtype)), dim=1).cpu()
        boxes, objects = rows[:, :4].split(counts), rows[:, 4].long().split(counts)
    cropped = [crop_masks(*image, size) for image in zip(masks, objects, boxes) if len(image[-1])]
    if not cropped:
        return torch.zeros(0, size, size, dtype=torch.bool, device=device)
    return torch.cat(cropped).to(device, non_blocking=True)


def crop_masks(masks: Sequence[Sequence[np.ndarray]] | Tensor, objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What the mask head should predict in each box.

    Args:
        masks: of all objects of an image, either polygons, each object a list of float64 vectors x0, y0, x1, y1, ...,
            or a tensor (N, height, width) that is not zero inside.
        objects: (R,) the object of each box.
        boxes: (R, 4).
        size: cells a side.
    Returns:
        (R, size, size) bool on the device of `boxes`.
    """
    if isinstance(masks, Tensor):
        regions = torch.cat((objects[:, None].to(boxes.dtype), boxes), dim=1)
        bitmaps = masks.to(boxes.device, torch.float32)[:, None]
        return roi_align(bitmaps, regions, size, spatial_scale=1.0, sampling_ratio=0, aligned=True)[:, 0] >= 0.5
    corners = boxes.cpu().numpy()
    scales = size / np.maximum(corners[:, 2:] - corners[:, :2], MIN_SIDE)
    cropped = np.zeros((len(corners), size, size), dtype=bool)
    for i, index in enumerate(objects.tolist()):
        shift, scale = corners[i, :2], scales[i]
        polygons = [((polygon.reshape(-1, 2) - shift) * scale).ravel() for polygon in masks[index]]
        if polygons:
            cropped[i] = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, size, size)))
    return torch.from_numpy(cropped).to(boxes.device)
