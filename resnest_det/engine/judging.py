"""What the figures of a run's evaluations say: which was the best, whether it is time to stop, which classes are not learned."""

import math
from collections.abc import Mapping

STUCK_AFTER = 3  # evaluations


class Evaluations:
    """The figures of a run's evaluations so far, in their order.

    Args:
        results: of each its iteration, and its figures by name, such as {"bbox/AP": 37.5}.
        metric: the figure to go by; higher is better. One that is missing or not a number is below all.
    """

    def __init__(self, results: list[tuple[int, Mapping[str, float]]], metric: str):
        self.results = list(results)
        self.metric = metric

    def add(self, iteration: int, results: Mapping[str, float]) -> bool:
        """Take another one; whether it is the best so far."""
        before = self.best()
        self.results.append((iteration, results))
        return before is None or self._value(results) > before[1]

    def best(self) -> tuple[int, float] | None:
        """Iteration and value of the best one, the first of equals; None without any."""
        values = [(iteration, self._value(results)) for iteration, results in self.results]
        return max(values, key=lambda pair: pair[1], default=None)

    def without_better(self) -> int:
        """How many have followed the best one."""
        values = [self._value(results) for _, results in self.results]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def stuck(self, prefix: str) -> list[str]:
        """Classes whose figure `prefix`<class>, as in "bbox/AP-car", stayed 0 in the last evaluations, while others' did not."""
        last = [results for _, results in self.results[-STUCK_AFTER:]]
        if len(last) < STUCK_AFTER:
            return []
        values = {name.removeprefix(prefix): [each.get(name, 0) for each in last] for name in last[-1] if name.startswith(prefix)}
        stuck = [name for name, figures in values.items() if all(figure == 0 for figure in figures)]
        return stuck if len(stuck) < len(values) else []

    def _value(self, results: Mapping[str, float]) -> float:
        value = results.get(self.metric, math.nan)
        return -math.inf if math.isnan(value) else value
