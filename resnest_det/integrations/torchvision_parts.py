"""Parts of torchvision's detectors that compute as the detectors here do, for `to_torchvision`. All of them can be scripted."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align

from resnest_det.detector.anchors import cell_anchors
from resnest_det.detector.pooler import CANONICAL_LEVEL, CANONICAL_SIZE


class FixedAnchors(AnchorGenerator):
    """Anchors that are not rounded to whole pixels, laid at given strides.

    torchvision divides the padded image's size by the map's, which is no stride where that leaves a remainder.

    Args: see `resnest_det.detector.anchors.AnchorGenerator`; `sizes` and `aspect_ratios` have one list for each level.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ):
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, aspect_ratios)))
        self.strides = list(strides)
        self.cell_anchors = [cell_anchors(*level) + offset * stride for *level, stride in zip(sizes, aspect_ratios, strides)]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(A, 4) anchors of all levels, for each image."""
        device = feature_maps[0].device
        self.set_cell_anchors(feature_maps[0].dtype, device)
        strides = [[torch.tensor(stride, device=device), torch.tensor(stride, device=device)] for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(feature.shape[-2:]) for feature in feature_maps], strides))
        return [anchors for _ in image_list.image_sizes]


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign with samples aligned to the centres of pixels, which torchvision's detectors shift by half of one.

    Args:
        featmap_names: of the levels to pool from, from high to low resolution.
        output_size: side of the output in cells.
        sampling_ratio: samples per cell and axis; 0 takes about one a pixel.
        strides: of the levels.
    """

    def __init__(self, featmap_names: Sequence[str], output_size: int, sampling_ratio: int, strides: Sequence[int]):
        super().__init__(list(featmap_names), output_size, sampling_ratio)
        self.strides = list(strides)
        self.lowest, self.highest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """(sum of R_i, C, side, side) of the `boxes` (R_i, 4) of every image, in input pixels."""
        maps = [x[name] for name in self.featmap_names]
        all_boxes = torch.cat(boxes)
        images = torch.cat([torch.full_like(each[:, :1], index) for index, each in enumerate(boxes)])
        regions = torch.cat((images, all_boxes), dim=1)
        size = ((all_boxes[:, 2] - all_boxes[:, 0]) * (all_boxes[:, 3] - all_boxes[:, 1])).sqrt()
        levels = torch.floor(self.canonical_level + torch.log2(size / self.canonical_scale + 1e-8))
        levels = levels.clamp(self.lowest, self.highest).to(torch.int64) - self.lowest

        side = self.output_size[0]
        pooled = torch.zeros(len(regions), maps[0].shape[1], side, side, dtype=maps[0].dtype, device=maps[0].device)
        for level, feature in enumerate(maps):
            chosen = torch.where(levels == level)[0]
            cells = roi_align(feature, regions[chosen], side, 1.0 / self.strides[level], self.sampling_ratio, aligned=True)
            pooled[chosen] = cells.to(pooled.dtype)
        return pooled


assert (CANONICAL_SIZE, CANONICAL_LEVEL) == (224, 4)  # torchvision's defaults, which `AlignedRoIAlign` has


class PixelTransform(GeneralizedRCNNTransform):
    """Resizes images in 8 bits with Pillow's filter, and stretches masks over their boxes without rounding those.

    Args:
        short_sides, max_side: in pixels, see `resnest_det.data.transforms.short_side_size`; a short side of 0 keeps the size.
        pixel_mean, pixel_std: of each channel in 0 ... 255, in the order of the images.
        size_divisible: what the sides of a batch are padded to a multiple of.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_side: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisible: int = 32,
    ):
        in_unit = [[value / 255 for value in values] for values in (pixel_mean, pixel_std)]
        super().__init__(tuple(short_sides), max_side, *in_unit, size_divisible=size_divisible)
        self.pixel_mean, self.pixel_std = list(pixel_mean), list(pixel_std)

    def normalize(self, image: Tensor) -> Tensor:
        """The image as it is: `resize`, which comes after this, needs it in 8 bits."""
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """A normalised image (C, H', W') of one (C, H, W) in 0 ... 1, and what is true of it."""
        height, width = image.shape[-2:]
        short_side = self.torch_choice(list(self.min_size)) if self.training else self.min_size[-1]
        size = self.new_size(height, width, short_side)
        pixels = (image * 255).round()
        if size[0] != height or size[1] != width:
            pixels = resize_like_pillow(pixels, size)
        mean = torch.tensor(self.pixel_mean, dtype=image.dtype, device=image.device)
        std = torch.tensor(self.pixel_std, dtype=image.dtype, device=image.device)
        image = (pixels - mean[:, None, None]) / std[:, None, None]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], size)
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None].to(image.dtype), size)[:, 0].byte()
        return image, target

    def new_size(self, height: int, width: int, short_side: int) -> list[int]:
        """(height, width) that an image is resized to."""
        if short_side == 0:
            return [height, width]
        scale = short_side / min(height, width)
        new_height, new_width = scale * height, scale * width
        if height < width:
            new_height = float(short_side)
        else:
            new_width = float(short_side)
        longest = max(new_height, new_width)
        if longest > self.max_size:
            shrink = self.max_size / longest
            new_height, new_width = new_height * shrink, new_width * shrink
        return [max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))]

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: list[tuple[int, int]], original_image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections in the pixels of the images as they came, masks (D, 1, H, W) as probabilities, 0 outside the boxes."""
        if self.training:
            return result
        for index, found in enumerate(result):
            height, width = original_image_sizes[index]
            boxes = resize_boxes(found["boxes"], list(image_shapes[index]), [height, width])
            found["boxes"] = boxes
            if "masks" in found:
                # Bilinear interpolation on an upright grid is one matrix for the rows and one for the columns.
                cells = found["masks"][:, 0].to(boxes.dtype)  # (D, M, M)
                rows = interpolation_weights(height, boxes[:, 1], boxes[:, 3], cells.shape[-1])
                columns = interpolation_weights(width, boxes[:, 0], boxes[:, 2], cells.shape[-1])
                found["masks"] = (rows @ cells @ columns.transpose(1, 2))[:, None]
        return result


def resize_like_pillow(pixels: Tensor, size: list[int]) -> Tensor:
    """(C, H, W) of whole numbers, 0 to 255, as (C, *size): to the bit what Pillow's bilinear filter makes of 8-bit images."""
    columns = filter_weights(pixels.shape[2], size[1], pixels.device)
    rows = filter_weights(pixels.shape[1], size[0], pixels.device)
    # Whole numbers in double precision, where every product and sum is exact; Pillow, too, rounds after each axis.
    resized = (pixels.double() @ columns.T / 2**22 + 0.5).floor().clamp(0, 255)
    return (rows @ resized / 2**22 + 0.5).floor().clamp(0, 255).to(pixels.dtype)


def filter_weights(length: int, new_length: int, device: torch.device) -> Tensor:
    """(new_length, length) float64 weight of each old position for each new one, in Pillow's units of 2**-22."""
    scale = length / new_length
    support = max(scale, 1.0)
    centres = (torch.arange(new_length, dtype=torch.float64, device=device)[:, None] + 0.5) * scale
    positions = torch.arange(length, device=device)
    inside = (positions >= (centres - support + 0.5).long()) & (positions < (centres + support + 0.5).long())
    weights = (1 - ((positions - centres + 0.5) * (1 / support)).abs()).clamp(min=0) * inside
    return (weights / weights.sum(1, keepdim=True) * 2**22 + 0.5).floor()


def interpolation_weights(pixels: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(D, pixels, cells) weight of each cell between `low` (D,) and `high` (D,) for every pixel of a side."""
    centres = torch.arange(pixels, device=low.device, dtype=low.dtype) + 0.5
    positions = (centres[None] - low[:, None]) / (high - low)[:, None] * cells - 0.5  # (D, pixels)
    distances = positions[:, :, None] - torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - distances.abs()).clamp(min=0)
