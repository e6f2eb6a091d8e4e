"""The flags `--data` and `--model` of `train`: a folder of labelled images, and a model for which the rest is chosen."""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fvcore.common.config import CfgNode

from resnest_det.configuration.reading import find_config_file
from resnest_det.configuration.standalone import register_datasets_of, with_datasets
from resnest_det.data.catalog import DatasetFiles
from resnest_det.data.formats.splits import find_splits
from resnest_det.engine.events import setup_logging
from resnest_det.errors import UserError
from resnest_det.model_zoo import TRAINED_DETECTORS, trained_weights
from resnest_det.training.first_schedule import Schedule, choose_schedule, lower_to_memory


@dataclass(frozen=True)
class Settings:
    """Where a run's configuration comes from.

    Attributes:
        config_file: YAML file or name.
        overrides: KEY, VALUE, ... after it.
        datasets: to be registered, by name.
        lines: what was chosen and why.
    """

    config_file: str
    overrides: list
    datasets: dict[str, DatasetFiles] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a folder of images and their labels in any known format (docs/data.md): its splits become DATASETS.TRAIN and TEST",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="with --data: a bundled recipe; everything that no KEY VALUE sets is chosen for the data"
    )
    parser.add_argument(
        "--auto-batch", action="store_true", help="measure first what fits into memory, and lower SOLVER.IMS_PER_BATCH to it"
    )


def settings_of(
    args: argparse.Namespace, load: Callable[[str, list], CfgNode], registered: dict[str, DatasetFiles], processes: int
) -> Settings:
    """The configuration and the datasets that the flags ask for.

    Args:
        load: reads and checks a configuration, and resolves MODEL.DEVICE.
        registered: datasets of other flags, by name.
        processes: of this machine.

    Raises:
        UserError: flags that do not go together, or see `find_splits` and `choose_schedule`.
    """
    if bool(args.config_file) == bool(args.model):
        raise UserError("give either --config-file FILE, or --data DIR and --model NAME")
    if args.model and not args.data:
        raise UserError(f"--model {args.model} needs --data DIR, the images and labels that the rest is chosen for")
    overrides, datasets = list(args.opts), {}
    if args.data:
        datasets, own = _datasets(args.data)
        overrides = own + overrides
    if not args.model:
        settings = Settings(args.config_file, overrides, datasets)
        if not args.auto_batch:
            return settings
        cfg = load(args.config_file, overrides)
        if earlier := _earlier(args, cfg.OUTPUT_DIR):
            return replace(settings, config_file=earlier)
        register_datasets_of(with_datasets(cfg, registered | datasets))
        with _quiet():
            schedule = lower_to_memory(cfg, processes)
        return replace(settings, overrides=overrides + _flat(schedule), lines=schedule.lines)

    if args.num_machines > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            "--model chooses settings on one machine, by one process; run it there first, and give its config.yaml to all as "
            "--config-file"
        )
    given = set(args.opts[::2])
    if "OUTPUT_DIR" not in given:
        overrides = ["OUTPUT_DIR", str(Path("output", Path(args.data).resolve().name)), *overrides]
    cfg = load(args.model, overrides)
    if earlier := _earlier(args, cfg.OUTPUT_DIR):
        return Settings(earlier, args.opts, datasets)
    if args.eval_only:
        return Settings(args.model, overrides, datasets)
    register_datasets_of(with_datasets(cfg, datasets))
    recipe = find_config_file(args.model).stem
    detector = trained_weights(recipe) if recipe in TRAINED_DETECTORS and "MODEL.WEIGHTS" not in given else ""
    with _quiet():
        schedule = choose_schedule(cfg, given, processes, detector)
    return Settings(args.model, overrides + _flat(schedule), datasets, schedule.lines)


def _datasets(folder: str) -> tuple[dict[str, DatasetFiles], list]:
    """The splits of a folder by the names that they get, and the overrides that name them."""
    setup_logging(None)
    splits = find_splits(os.path.abspath(os.path.expanduser(folder)))
    base = "".join(each if each.isalnum() or each in "-_." else "_" for each in Path(folder).resolve().stem) or "data"
    names = {split: f"{base}_{split}" for split in splits}
    overrides = ["DATASETS.TRAIN", (names["train"],), "DATASETS.TEST", (names["val"],)]
    return {names[split]: files for split, files in splits.items()}, overrides


def _earlier(args: argparse.Namespace, folder: str) -> str:
    """The configuration of the run that is resumed, "" where there is none."""
    path = Path(folder, "config.yaml")
    return str(path) if args.resume and path.is_file() and Path(folder, "last_checkpoint").is_file() else ""


def _flat(schedule: Schedule) -> list:
    return [each for pair in schedule.values.items() for each in pair]


@contextmanager
def _quiet() -> Iterator[None]:
    # What is read here is read again by the run, which then tells of it.
    log = logging.getLogger("resnest_det")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
