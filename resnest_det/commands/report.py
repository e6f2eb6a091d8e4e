"""The command `report`: write the report of a run anew."""

import argparse
from collections.abc import Sequence

from resnest_det.commands.run_results import read_run
from resnest_det.data.catalog import get_dataset
from resnest_det.data.instance_records import joined
from resnest_det.data.statistics import Statistics, statistics_of
from resnest_det.errors import UserError
from resnest_det.training.report import report_run


def main(arguments: Sequence[str]) -> None:
    """Write report.html into the folder of a run.

    Raises:
        UserError: the folder has no run that was evaluated, or its datasets are not there any more.
    """
    parser = argparse.ArgumentParser(description="Write report.html of a run: is it good, where does it fail, what to try next.")
    parser.add_argument("run", metavar="RUN", help="the OUTPUT_DIR of a run that has been evaluated")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    run = read_run(parser.parse_args(arguments).run)
    statistics = [statistics_of(each.name, each.records, each.metadata.thing_classes) for each in run.datasets]
    path = report_run(run.folder, run.datasets, statistics, _trained_on(run.cfg.DATASETS.TRAIN))
    if path is None:
        raise UserError(f"{run.folder}: the datasets of DATASETS.TEST have no annotations to evaluate by")
    print(path)


def _trained_on(names: Sequence[str]) -> Statistics | None:
    if not names:
        return None
    datasets = [get_dataset(name) for name in names]
    records = joined([dataset.records for dataset in datasets])
    return statistics_of(" and ".join(names), records, datasets[0].metadata.thing_classes)
