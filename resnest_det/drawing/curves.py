"""The curves of training runs."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from resnest_det.drawing.plots import figure
from resnest_det.engine.metrics import Metrics

_FIGURES = ("/AP", "/PQ", "/mIoU")
_TASKS = {"bbox/AP": "AP of boxes", "segm/AP": "AP of masks", "panoptic_seg/PQ": "PQ", "sem_seg/mIoU": "mIoU"}
_WINDOW = 20  # iterations, as the progress line has it
_MOST_POINTS = 2000


def plot_runs(runs: Sequence[Metrics], path: str | Path) -> None:
    """Loss, learning rate and figures of evaluations over the iterations, a color for each run, in one picture."""
    with figure(path, 17, 5, columns=3) as (loss, rate, quality):
        for number, run in enumerate(runs):
            color, label = f"C{number % 8}", run.name
            if "total_loss" in run.scalars:
                iterations, values = (np.array(each, dtype=float) for each in run.scalars["total_loss"])
                step = max(1, len(values) // _MOST_POINTS)
                loss.plot(iterations[::step], values[::step], color=color, alpha=0.2, linewidth=0.7)
                loss.plot(iterations[::step], _smoothed(values)[::step], color=color, label=label)
            if "lr" in run.scalars:
                rate.plot(*run.scalars["lr"], color=color, label=label)
            names = [name for name in run.scalars if name.endswith(_FIGURES)]
            for name, style in zip(names, cycle(("-", "--", ":", "-."))):
                what = _TASKS.get(name, name)
                quality.plot(*run.scalars[name], color=color, linestyle=style, marker="o", label=f"{label}, {what}")
        low, high = _range(loss)
        loss.set(title=f"total loss, median of {_WINDOW}", ylim=(low, high))
        rate.set(title="learning rate", ylim=(0, None))
        quality.set(title="evaluations")
        for axes in (loss, rate, quality):
            axes.set(xlabel="iteration")
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize="small")
            else:
                axes.text(0.5, 0.5, "none yet", ha="center", va="center", transform=axes.transAxes)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Medians of the last values, as many as the progress line takes."""
    padded = np.concatenate([np.full(_WINDOW - 1, np.nan), values])
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW), axis=1)


def _range(axes) -> tuple[float | None, float | None]:
    """The range of the smoothed curves, so that single spikes do not flatten them."""
    curves = [np.asarray(line.get_ydata()) for line in axes.lines[1::2]]
    if not curves:
        return None, None
    high = max(float(np.max(curve)) for curve in curves)
    return 0.0, 1.05 * high or None
