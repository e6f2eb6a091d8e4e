"""The folder of a run and its detections, for commands that look at runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode

from resnest_det.configuration.reading import load_config
from resnest_det.configuration.standalone import CONFIG_NAME, register_datasets_of
from resnest_det.data.catalog import get_dataset
from resnest_det.data.coco import Dataset
from resnest_det.errors import UserError
from resnest_det.training.report import results_file


@dataclass(frozen=True)
class RunResults:
    """A run's folder, its configuration, and the datasets of DATASETS.TEST on which it has results."""

    folder: Path
    cfg: CfgNode
    datasets: Sequence[Dataset]

    def results_file(self, dataset: Dataset) -> Path:
        """The detections on one of its datasets."""
        return results_file(self.folder, dataset.name, len(self.cfg.DATASETS.TEST) > 1)


def read_run(run: str) -> RunResults:
    """What a folder has of a run.

    Raises:
        UserError: it is no folder of a run, or has no detections.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{run} is not a folder; expected the OUTPUT_DIR of a run")
    config = folder / CONFIG_NAME
    if not config.is_file():
        raise UserError(f"{run} has no {CONFIG_NAME}; expected the OUTPUT_DIR of a run")
    cfg = load_config(str(config))
    register_datasets_of(cfg)
    several = len(cfg.DATASETS.TEST) > 1
    names = [name for name in cfg.DATASETS.TEST if results_file(folder, name, several).is_file()]
    if not names:
        expected = results_file(folder, (*cfg.DATASETS.TEST, "DATASET")[0], several)
        raise UserError(
            f"{run} has no detections, expected at {expected}: `resnest-det train --config-file {config} --eval-only`"
        )
    return RunResults(folder, cfg, [get_dataset(name, keep_truth=True) for name in names])
