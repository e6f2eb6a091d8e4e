"""Reading the `metrics.json` of a run, while it is written as well."""

import json
import math
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from resnest_det.errors import UserError


@dataclass(frozen=True)
class Metrics:
    """What a run has reported: of each scalar (`total_loss`, `lr`, `bbox/AP`, ...) the iterations and values, in their order."""

    name: str
    scalars: dict[str, tuple[list[int], list[float]]]


def read_metrics(run: str | os.PathLike) -> Metrics:
    """The scalars of a run, given by its folder or the file itself.

    Lines that are not whole are skipped: a run that was killed leaves such. Of an iteration that is reported twice the later line
    counts.

    Raises:
        UserError: there is no such file, or no line of it can be used.
    """
    path = Path(run)
    path = path / "metrics.json" if path.is_dir() else path
    if not path.is_file():
        what = "is not a folder" if not Path(run).exists() else "has no metrics.json: no training has begun in it"
        raise UserError(f"{run} {what}; expected the OUTPUT_DIR of a run")
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or type(entry.get("iteration")) is not int:
            continue
        for key, value in entry.items():
            # An evaluation has nan where there is no ground truth.
            if key != "iteration" and type(value) in (int, float) and math.isfinite(value):
                values[key][entry["iteration"]] = float(value)
    if not values:
        raise UserError(f"{path} has no line with figures: the run has not finished its first iteration, or this is another file")
    scalars = {key: (sorted(each), [each[iteration] for iteration in sorted(each)]) for key, each in values.items()}
    return Metrics(path.resolve().parent.name, scalars)
