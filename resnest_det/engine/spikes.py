"""Noticing losses that leap, while it happens."""

from collections import deque
from collections.abc import Mapping
from statistics import median

from resnest_det.engine.callbacks import Callback

FACTOR = 5  # times the median is a leap
WINDOW = 50  # iterations of the median
_LEAST = 20  # iterations before which nothing is usual
_PAUSE = 100  # iterations between two that are told


class SpikeWatch(Callback):
    """Keeps one line about the last iteration in `found`, if its losses have leapt, else ""."""

    def __init__(self):
        self.found = ""
        self._totals: deque[float] = deque(maxlen=WINDOW)
        self._told = -_PAUSE

    def iteration(self, iteration: int, losses: Mapping[str, float], **times: float) -> None:
        total, self.found = sum(losses.values()), ""
        usual = median(self._totals) if len(self._totals) >= _LEAST else 0
        if usual > 0 and total > FACTOR * usual and iteration - self._told >= _PAUSE:
            largest = max(losses, key=losses.__getitem__)
            self._told = iteration
            self.found = (
                f"iteration {iteration}: the loss leapt to {total:.3g}, {total / usual:.0f} times the median of the last "
                f"{len(self._totals)} iterations; most of it is {largest}, {losses[largest]:.3g}"
            )
        self._totals.append(total)
