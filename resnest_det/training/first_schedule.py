"""`train --data DIR --model NAME`: what there is and what the machine is, measured, become a configuration by rules."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from resnest_det.configuration.recipe import BATCH, Machine, Plan, Pretrained, by_data, by_machine
from resnest_det.configuration.solver import RATE_KEYS, rate_factor
from resnest_det.configuration.weights import fetch_initial_weights
from resnest_det.data.catalog import get_dataset
from resnest_det.data.coco import Dataset
from resnest_det.data.instance_records import joined
from resnest_det.data.statistics import Statistics, statistics_of
from resnest_det.errors import UserError
from resnest_det.training.measuring import measure_fit
from resnest_det.weights.weights import read_weights


@dataclass(frozen=True)
class Schedule:
    """What was chosen: values by key, and a line for each with its reason."""

    values: dict[str, object]
    lines: tuple[str, ...]


def machine_of(cfg: CfgNode, processes: int) -> Machine:
    """The machine that a run of so many processes has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cfg.MODEL.DEVICE.partition(":")[0], processes, cores)


def choose_schedule(cfg: CfgNode, given: Collection[str], processes: int, trained_detector: str = "") -> Schedule:
    """Read the training data of `cfg`, measure what fits into memory, and choose whatever is not `given`.

    Args:
        cfg: with MODEL.DEVICE resolved.
        processes: of this machine.
        trained_detector: see `by_data`.

    Raises:
        UserError: the data cannot be read or has nothing to train on, weights cannot be fetched, or nothing fits into memory.
    """
    data, machine, plan = training_statistics(cfg), machine_of(cfg, processes), Plan(cfg, given)
    if len(data.image_sizes) == 0:
        raise UserError(f"{data.name}: there are no images")
    by_data(plan, data, machine, trained_detector)
    # That weights cannot be had is told before anything is measured.
    pretrained = pretrained_with(plan.cfg.MODEL.WEIGHTS) if plan.cfg.MODEL.WEIGHTS else Pretrained()
    lines, fits = [], BATCH
    if "SOLVER.IMS_PER_BATCH" not in given:
        fit = measure_fit(plan.cfg, data, max(2, BATCH // processes))
        lines, fits = [f"Memory {fit.text}"], fit.images
    by_machine(plan, data, machine, fits, pretrained)
    return Schedule(
        {choice.key: choice.value for choice in plan.choices}, (*lines, *(f"Chosen {choice}" for choice in plan.choices))
    )


def pretrained_with(weights: str) -> Pretrained:
    """What MODEL.WEIGHTS fill, by the names of their parameters.

    Raises:
        UserError: they cannot be had or read.
    """
    read = read_weights(fetch_initial_weights(weights))

    def norm_of(names: Iterable[str]) -> str:
        return "BN" if any(name.endswith("running_mean") for name in names) else "GN"

    return Pretrained(norm_of(read.backbone), norm_of(read.rest) if read.is_detector else "")


def lower_to_memory(cfg: CfgNode, processes: int) -> Schedule:
    """What `--auto-batch` changes: the largest batch up to SOLVER.IMS_PER_BATCH that memory is there for, and what goes with it.

    Raises:
        UserError: see `choose_schedule`.
    """
    each = max(1, cfg.SOLVER.IMS_PER_BATCH // processes)
    fit = measure_fit(cfg, training_statistics(cfg), each)
    lines = (f"Memory {fit.text}",)
    if fit.images >= each:
        return Schedule({}, (*lines, f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} fits"))
    factor = fit.images / each
    rate = cfg.SOLVER.BASE_LR * rate_factor(cfg.SOLVER.OPTIMIZER, factor)
    values: dict[str, object] = {"SOLVER.IMS_PER_BATCH": fit.images * processes, "SOLVER.BASE_LR": rate}
    values |= {f"SOLVER.{key}": round(cfg.SOLVER[key] / factor) for key in RATE_KEYS}
    values["SOLVER.STEPS"] = tuple(round(step / factor) for step in cfg.SOLVER.STEPS)
    values["TEST.EVAL_PERIOD"] = round(cfg.TEST.EVAL_PERIOD / factor)
    why = f"{fit.images} images fit into a process and not {each}; rate and periods go with it"
    return Schedule(values, (*lines, *(f"Chosen {key} {value!r}: {why}" for key, value in values.items())))


def training_statistics(cfg: CfgNode) -> Statistics:
    """Of all images of DATASETS.TRAIN, which are read for it.

    Raises:
        UserError: they cannot be read.
    """
    datasets: Sequence[Dataset] = [get_dataset(name) for name in cfg.DATASETS.TRAIN]
    records = joined([dataset.records for dataset in datasets])
    return statistics_of(datasets[0].name, records, datasets[0].metadata.thing_classes)
