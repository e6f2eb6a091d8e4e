"""Features of regions, each cropped from the pyramid level that fits its size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIAlign

from resnest_det.detector.roi_align import AlignedRegions
from resnest_det.errors import ArgumentError

# A box of ImageNet's training size belongs on the map with stride 16 (FPN, arXiv:1612.03144, equation 1).
CANONICAL_SIZE = 224
CANONICAL_LEVEL = 4

FEW_REGIONS = 256
OUTSIDE = -1e5  # a coordinate in pixels where nothing is sampled


class RegionPooler(nn.Module):
    """Crops regions to a fixed size with RoIAlign, aligned to pixel centres.

    Args:
        output_size: side of the output in cells.
        strides: of the maps, powers of two, each twice the one before.
        sampling_ratio: samples per cell and axis; 0 takes about one a pixel.

    Raises:
        ArgumentError: strides that are not so.
    """

    def __init__(self, output_size: int, strides: Sequence[int], sampling_ratio: int):
        super().__init__()
        if any(high != 2 * low for low, high in zip(strides, strides[1:])):
            raise ArgumentError("strides", f"{list(strides)} are not supported: each must be twice the one before")
        self.output_size = output_size
        self.min_level = int(math.log2(strides[0]))
        self.max_level = int(math.log2(strides[-1]))
        self.level_poolers = nn.ModuleList(
            RoIAlign(output_size, 1.0 / stride, sampling_ratio, aligned=True) for stride in strides
        )

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool the boxes of all images.

        Args:
            features: maps (N, C, H, W), one for each stride.
            boxes: for each of N images (R_i, 4) boxes in input pixels.
        Returns:
            (sum of R_i, C, output_size, output_size), image after image.
        """
        image_index = torch.cat([image_boxes.new_full((len(image_boxes), 1), i) for i, image_boxes in enumerate(boxes)])
        return self.pool(features, torch.cat((image_index, torch.cat(list(boxes))), dim=1))

    def pool(self, features: Sequence[Tensor], regions: Tensor) -> Tensor:
        """(R, C, output_size, output_size) of `regions` (R, 5): each the index of its image, and its box in input pixels."""
        levels = self._levels(regions[:, 1:])
        if regions.device.type != "cpu" and len(regions) <= FEW_REGIONS:
            output = features[0].new_zeros(len(regions), features[0].shape[1], self.output_size, self.output_size)
            # All on every level, but outside of the map where it isn't theirs: cheaper than waiting to hear how many are.
            outside = torch.cat((regions[:, :1], torch.full_like(regions[:, 1:], OUTSIDE)), dim=1)
            for level, (pooler, feature) in enumerate(zip(self.level_poolers, features)):
                output += pooler(feature.float(), torch.where((levels == level)[:, None], regions, outside))
            return output
        chosen = self._by_level(levels)
        # Every level is in the graph, also one without regions: all parameters get a gradient.
        # Half precision would round coordinates to whole pixels and more.
        pooled = [
            self._crop(pooler, feature.float(), regions[own])
            for pooler, feature, own in zip(self.level_poolers, features, chosen)
        ]
        # Of a permutation, its inverse; OpenVINO has no rule for putting rows where they belong.
        return torch.cat(pooled).to(features[0].dtype).index_select(0, torch.cat(chosen).argsort())

    def _crop(self, pooler: RoIAlign, feature: Tensor, regions: Tensor) -> Tensor:
        trains = feature.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if feature.device.type == "cpu" and trains:
            return AlignedRegions.apply(feature, regions, self.output_size, pooler.spatial_scale, pooler.sampling_ratio)
        return pooler(feature, regions)

    def _levels(self, boxes: Tensor) -> Tensor:
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE + 1e-8))
        return levels.clamp(self.min_level, self.max_level).long() - self.min_level

    def _by_level(self, levels: Tensor) -> Sequence[Tensor]:
        """Indices of the regions of each level, given the level of each."""
        numbers = range(len(self.level_poolers))
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # counts would be constants
            return [(levels == level).nonzero().squeeze(1) for level in numbers]
        counts = (levels == torch.arange(len(numbers), device=levels.device)[:, None]).sum(dim=1)
        return levels.argsort(stable=True).split(counts.tolist())
