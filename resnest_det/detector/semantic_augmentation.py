"""Test-time augmentation of a model that labels pixels: an image in several sizes, mirrored, whole or in windows that overlap.

The windows, their padding and the exponentials are those of PyTorch-Encoding's MultiEvalModule, by which the authors of ResNeSt
measured their segmentation models. Scores of a window go to the pixels of the image at once, so that none of a whole larger image
is ever in memory.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.data.transforms import long_side_size
from resnest_det.detector.semantic_segmentor import SemanticSegmentor
from resnest_det.errors import ArgumentError

COMBINATIONS = ("probabilities", "exponentials")
# e to the power of more would leave single precision when a few are added.
_LARGEST_EXPONENT = 80.0


@dataclass(frozen=True)
class PixelViews:
    """How an image is looked at.

    Args:
        scales: a view for each of these sizes.
        long_side: of an image at scale 1, in pixels; 0 is its own.
        flip: whether to look at each mirrored left to right too.
        window: (height, width) of the windows that a view is cut into, each two thirds of that from the next; () looks at whole
            views.
        combine: what is averaged: "probabilities", or "exponentials" of the logits, where those of a view and of its mirror image
            are added before.

    Raises:
        ArgumentError: one of them cannot be.
    """

    scales: tuple[float, ...] = (1.0,)
    long_side: int = 0
    flip: bool = False
    window: tuple[int, ...] = ()
    combine: str = "probabilities"

    def __post_init__(self):
        if not self.scales or not all(isinstance(scale, (int, float)) and 0 < scale <= 100 for scale in self.scales):
            raise ArgumentError("scales", f"is {self.scales}; it must be one or more numbers above 0")
        if self.window and not (len(self.window) == 2 and all(isinstance(side, int) and side >= 8 for side in self.window)):
            raise ArgumentError("window", f"is {self.window}; it must be a height and a width of 8 pixels or more, or empty")
        if self.combine not in COMBINATIONS:
            raise ArgumentError("combine", f"is {self.combine!r}; supported: {', '.join(COMBINATIONS)}")


class SemanticSegmentorWithTTA(nn.Module):
    """A model that looks at each image several times; in evaluation mode to be called like the model itself.

    Args:
        model: whose scores are combined.
        views: how.

    Views are made of the sample's `image`, (C, H, W) uint8. `sem_seg` are then sums of what is averaged, not logits.
    """

    def __init__(self, model: SemanticSegmentor, views: PixelViews):
        super().__init__()
        self.model = model
        self.views = views

    def forward(self, batch: Sequence[dict]) -> list[dict[str, Tensor]]:
        """`sem_seg` of each image, (C, height, width) float32 at the size of the image itself."""
        return [{"sem_seg": self._scores(sample)} for sample in batch]

    def _scores(self, sample: dict) -> Tensor:
        model, views = self.model, self.views
        image = (sample["image"].to(model.device) - model.pixel_mean) / model.pixel_std
        height, width = image.shape[-2:]
        head = model.sem_seg_head
        total = image.new_zeros(head.num_classes, sample.get("height", height), sample.get("width", width))
        for scale in views.scales:
            size = long_side_size(height, width, math.ceil((views.long_side or max(height, width)) * scale))
            # A model whose corners are aligned was tested on images enlarged in the same way.
            corners = dict(align_corners=True) if head.align_corners else dict(align_corners=False, antialias=True)
            view = F.interpolate(image[None], size, mode="bilinear", **corners)[0]
            windows = list(self._windows(size))
            rows, columns = ({span[axis] for span in windows} for axis in (0, 1))
            along = [
                {span: _Taps.of(span, spans, old, new, head.align_corners, image.device) for span in spans}
                for spans, old, new in zip((rows, columns), size, total.shape[-2:])
            ]
            for window in windows:
                self._add(total, self._window_scores(view, window), *(taps[span] for taps, span in zip(along, window)))
        return total

    def _windows(self, size: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """First and last row, first and last column (the last ones not included) of the windows of a view of `size`."""
        if not self.views.window:
            yield (0, size[0]), (0, size[1])
            return
        spans = []
        for side, window in zip(size, self.views.window):
            step = int(window * (2 / 3))
            # What is padded to a whole window belongs to it.
            count = math.ceil(max(0, side - window) / step) + 1
            spans.append([(k * step, min(k * step + window, max(side, window))) for k in range(count)])
        for rows in spans[0]:
            for columns in spans[1]:
                yield rows, columns

    def _window_scores(self, view: Tensor, window: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
        """(C, height, width) of what is averaged, of the pixels of a window, (H, W) or less of which are those of `view`."""
        (y0, y1), (x0, x1) = window
        pixels = view[:, y0:y1, x0:x1]
        if self.views.window:
            black = -self.model.pixel_mean / self.model.pixel_std
            padded = black.expand(-1, *self.views.window).clone()
            padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        else:
            padded = pixels
        logits = self._logits(padded)
        if not self.views.flip:
            scores = logits.clamp(max=_LARGEST_EXPONENT).exp_() if self.views.combine == "exponentials" else logits.softmax(dim=0)
        else:
            mirrored = self._logits(padded.flip(-1)).flip(-1)
            if self.views.combine == "exponentials":
                scores = (logits + mirrored).clamp_(max=_LARGEST_EXPONENT).exp_()
            else:
                scores = (logits.softmax(dim=0) + mirrored.softmax(dim=0)) / 2
        return scores[:, : y1 - y0, : x1 - x0]

    def _logits(self, image: Tensor) -> Tensor:
        """(C, H, W) of a normalised image (channels, H, W)."""
        padded = self.model.pad([image], 0.0)
        logits = self.model.logits(self.model.backbone(padded), padded.shape[-2:])
        return logits[0, :, : image.shape[-2], : image.shape[-1]]

    @staticmethod
    def _add(total: Tensor, scores: Tensor, rows: "_Taps", columns: "_Taps") -> None:
        """Add a window's part of the mean over windows, interpolated, to the scores of the image's pixels."""
        part = rows.apply(scores, 1)
        total[:, rows.first : rows.last, columns.first : columns.last] += columns.apply(part, 2)


@dataclass(frozen=True)
class _Taps:
    """Along one side, how pixels `first` to `last` of the image are interpolated from those of a window, two for each."""

    first: int
    last: int
    indices: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]

    @classmethod
    def of(
        cls, window: tuple[int, int], windows: set[tuple[int, int]], old: int, new: int, align_corners: bool, device: torch.device
    ) -> "_Taps":
        """Those of bilinear interpolation from `old` pixels to `new`; each old one is divided by its number of `windows`."""
        counts = torch.zeros(old)
        for start, end in windows:
            counts[start:end] += 1
        places = torch.arange(new, dtype=torch.float64)
        if align_corners:
            places = places * ((old - 1) / (new - 1)) if new > 1 else torch.zeros(1, dtype=torch.float64)
        else:
            places = ((places + 0.5) * (old / new) - 0.5).clamp(min=0)
        low = places.floor().long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        share = (places - low).float()
        weights = []
        for index, part in ((low, 1 - share), (high, share)):
            inside = (index >= window[0]) & (index < window[1])
            weights.append(torch.where(inside, part / counts[index], 0.0))
        touched = torch.nonzero((weights[0] != 0) | (weights[1] != 0))[:, 0]
        first, last = (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 0)
        indices = [(index[first:last] - window[0]).clamp(0, window[1] - window[0] - 1).to(device) for index in (low, high)]
        return cls(first, last, tuple(indices), tuple(weight[first:last].to(device) for weight in weights))

    def apply(self, scores: Tensor, dim: int) -> Tensor:
        """(C, h, w) -> the same with `last` - `first` along `dim`, 1 or 2."""
        low, high = (
            scores.index_select(dim, index).mul_(weight[:, None] if dim == 1 else weight)
            for index, weight in zip(self.indices, self.weights)
        )
        return low.add_(high)
