"""RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) for training on a CPU, where torchvision's backward pass is slow.

There it finds out anew for every channel where each sample lies and what its neighbors weigh. Both are the same for all channels,
so that the gradient is one sparse matrix times those of all channels.
"""

import torch
from torch import Tensor


class AlignedRegions(torch.autograd.Function):
    """torchvision's `roi_align` with `aligned=True`, and its gradient by a sparse matrix product."""

    @staticmethod
    def forward(ctx, feature: Tensor, regions: Tensor, output_size: int, scale: float, sampling_ratio: int) -> Tensor:
        """(R, C, output_size, output_size) of `feature` (N, C, H, W) for `regions` (R, 5), see `RegionPooler.pool`.

        Args:
            scale: cells of the map to a pixel of the input.
            sampling_ratio: samples per cell of the output and axis; 0 takes about one a cell of the map.
        """
        ctx.save_for_backward(regions)
        ctx.shape, ctx.arguments = feature.shape, (output_size, scale, sampling_ratio)
        return torch.ops.torchvision.roi_align(feature, regions, scale, output_size, output_size, sampling_ratio, True)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Of `feature`; regions have no gradient, as in torchvision."""
        (regions,) = ctx.saved_tensors
        images, channels, height, width = ctx.shape
        if not len(regions):
            return gradient.new_zeros(ctx.shape), None, None, None, None
        rows, row_weights = _band(regions[:, 2], regions[:, 4], height, *ctx.arguments)  # (R, S, h) both
        columns, column_weights = _band(regions[:, 1], regions[:, 3], width, *ctx.arguments)  # (R, S, w) both
        cells = rows + regions[:, 0].long()[:, None, None] * height
        # What the cells h x w of the map weigh in each of the S x S cells of the output: much is nothing.
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]  # (R, S, S, h, w)
        cells = (cells * width)[:, :, None, :, None] + columns[:, None, :, None, :]
        weights, cells = weights.flatten(), cells.flatten()
        used = weights.nonzero().squeeze(1)
        outputs = used // (rows.shape[2] * columns.shape[2])
        size = (images * height * width, len(regions) * rows.shape[1] * columns.shape[1])
        # Told so in this way, torch 2.11 does not warn that it does not check what lies in the matrix by construction.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            matrix = torch.sparse_coo_tensor(torch.stack((cells[used], outputs)), weights[used], size)
            result = torch.sparse.mm(matrix, gradient.permute(0, 2, 3, 1).reshape(-1, channels))  # (N * H * W, C)
        return result.view(images, height, width, channels).permute(0, 3, 1, 2), None, None, None, None


def _band(low: Tensor, high: Tensor, length: int, output_size: int, scale: float, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Which cells of the map weigh what in each of S = `output_size` cells of the output, along one axis.

    Args:
        low, high: (R,) of the regions, in pixels of the input.
        length: of the map.
    Returns:
        (R, S, K) int64 cells, and their weights. K is what the largest region needs; for others some weigh nothing.
    """
    start = low * scale - 0.5
    step = (high * scale - 0.5 - start) / output_size
    counts = torch.full_like(step, sampling_ratio) if sampling_ratio else step.ceil()  # (R,) samples in a cell
    step, divisor = step[:, None, None], counts.clamp(min=1)[:, None, None]
    samples = torch.arange(max(1, int(counts.max())))
    positions = start[:, None, None] + torch.arange(output_size)[:, None] * step + (samples + 0.5) * step / divisor  # (R, S, s)
    # Up to a cell outside counts as on the border.
    weights = ((positions >= -1) & (positions <= length) & (samples < counts[:, None, None])) / divisor
    positions = positions.clamp(0, length - 1)
    below = positions.long()
    fractions = positions - below
    first = below[:, :, :1]
    needed = int(torch.where(weights > 0, below - first, 0).max()) + 2
    offsets = (below - first).clamp(0, needed - 2)
    band = low.new_zeros(*first.shape[:2], needed)
    band.scatter_add_(2, offsets, weights * (1 - fractions)).scatter_add_(2, offsets + 1, weights * fractions)
    # Beyond the last cell there is only what weighs nothing.
    return (first + torch.arange(needed)).clamp(max=length - 1), band
