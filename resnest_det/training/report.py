"""The report of a run, from what the run has left in its folder."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from resnest_det.configuration.standalone import CONFIG_NAME
from resnest_det.data.coco import Dataset
from resnest_det.data.statistics import Statistics
from resnest_det.engine.metrics import read_metrics
from resnest_det.errors import UserError
from resnest_det.evaluation.results import read_results
from resnest_det.inference.report import Evaluated, write_report

logger = logging.getLogger(__name__)

RESULTS = "coco_instances_results.json"


def results_file(folder: str | os.PathLike, name: str, of_several: bool) -> Path:
    """Where the detections on a dataset of that name are, in the folder of a run that evaluates on it alone or on several."""
    return Path(folder, "inference", *([name] if of_several else []), RESULTS)


def report_run(
    folder: str | os.PathLike, datasets: Sequence[Dataset], statistics: Sequence[Statistics], trained_on: Statistics | None
) -> Path | None:
    """Write `report.html` into the folder of a run, and return its path; None where no objects were evaluated.

    Args:
        datasets: of DATASETS.TEST, read with their truth kept.
        statistics: of each of them.
        trained_on: those of the training images.

    Raises:
        UserError: see `write_report` and `read_results`.
    """
    evaluated = []
    for dataset, data in zip(datasets, statistics, strict=True):
        file = results_file(folder, dataset.name, len(datasets) > 1)
        listed_only = dataset.truth is not None and dataset.truth.annotations is None
        if file.exists() and not listed_only:
            evaluated.append(Evaluated(dataset, read_results(str(file), dataset), data))
    if not evaluated:
        return None
    try:
        metrics = read_metrics(folder)
    except UserError:  # it was evaluated, and trained elsewhere
        metrics = None
    config = Path(folder, CONFIG_NAME)
    path = Path(folder, "report.html")
    write_report(
        path,
        f"Run {Path(folder).resolve().name}",
        evaluated,
        trained_on=trained_on,
        metrics=metrics,
        configuration=config.read_text(encoding="utf-8", errors="replace") if config.exists() else "",
    )
    return path
