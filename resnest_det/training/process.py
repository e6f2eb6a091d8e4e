"""What each process of a run does with any detector: join the others, take a device, prepare the output folder, work."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from resnest_det.configuration.data import RunData
from resnest_det.configuration.model import resolve_device
from resnest_det.configuration.standalone import CONFIG_NAME, register_datasets_of, whole_configuration
from resnest_det.distributed import get_rank, is_main_process, synchronize
from resnest_det.engine.callbacks import callback_named
from resnest_det.engine.checkpoint import BEST_CHECKPOINT
from resnest_det.engine.environment import environment_summary
from resnest_det.engine.events import setup_logging
from resnest_det.engine.launch import claim_gpu, join_process_group, leave_process_group, share_cpu_threads
from resnest_det.errors import UserError, naming
from resnest_det.files import atomic_write, held, prepare_output_dir
from resnest_det.training.report import report_run
from resnest_det.training.run import evaluate_only, prepare, train

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a run is told besides its configuration.

    Attributes:
        resume: continue from the last checkpoint in OUTPUT_DIR, or evaluate it.
        eval_only: evaluate, do not train.
        config_file, overrides: origin of the configuration, for the log and for hosts that ask for it.
        services: names of `resnest_det.engine.writers.SERVICES` that get the curves too.
        callbacks: MODULE:NAME of the classes of callbacks of one's own.
        told: lines about the configuration, for the log and for config.yaml.
        counted: keys that nobody has set, to be taken from the data; see `resnest_det.configuration.classes.count_classes`.
    """

    resume: bool = False
    eval_only: bool = False
    config_file: str = ""
    overrides: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    callbacks: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    counted: Mapping[str, str] = field(default_factory=dict)


def run_process(cfg: CfgNode, options: RunOptions, work: Callable[[CfgNode, RunOptions], dict]) -> dict:
    """Do `work` as one of the processes the launcher has started.

    Returns:
        what `work` returns: on the main process the results of the evaluation, task to figures; empty on the others.
    """
    register_datasets_of(cfg)
    with joined(cfg.MODEL.DEVICE, cfg.FLOAT32_PRECISION, cfg.OUTPUT_DIR), naming({"num_workers": "DATALOADER.NUM_WORKERS"}):
        return work(cfg, as_restarted(options))


@contextmanager
def joined(device_name: str, float32_precision: str, folder: str) -> Iterator[None]:
    """Within, this process has its device and its part of the cores, belongs to the others, and keeps other runs out of `folder`.

    Args:
        device_name: MODEL.DEVICE.
        float32_precision: of products of matrices, "" for torch's own.
    """
    device = resolve_device(device_name)
    claim_gpu(device)
    share_cpu_threads()
    if float32_precision:
        torch.set_float32_matmul_precision(float32_precision)
    join_process_group(device)
    try:
        with _output_dir(folder):
            synchronize()
            yield
    finally:
        leave_process_group(device)


def as_restarted(options: RunOptions) -> RunOptions:
    """The options of a process that the launcher has restarted after a failure: it resumes by itself."""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return replace(options, resume=True) if restarted and not options.eval_only else options


@contextmanager
def _output_dir(folder: str) -> Iterator[None]:
    """On the main process, make `folder` and keep other runs out of it: all write to log.txt, and evaluations to inference/.

    Raises:
        UserError: it cannot be written to, or another run is there; the message says which.
    """
    if not is_main_process():
        yield
        return
    prepare_output_dir(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(held(Path(folder, "run.lock")))
        except UserError as error:
            raise UserError(
                f"another run is going on in OUTPUT_DIR {folder}: {error}; use another folder (one that trains can be evaluated "
                "with its checkpoint as MODEL.WEIGHTS), or wait"
            ) from None
        yield


def run_builtin(cfg: CfgNode, options: RunOptions) -> dict:
    """A process's work with the built-in detector: train, or only evaluate."""
    setup_logging(cfg.OUTPUT_DIR, get_rank())
    logger.info("Environment:\n%s", environment_summary())
    overrides = " ".join(options.overrides) or "none"
    logger.info("Built-in detector on %s; config %s; overrides %s", cfg.MODEL.DEVICE, options.config_file, overrides)
    for line in options.told:
        logger.info(line)
    cfg, data = prepare(cfg, train=not options.eval_only, counted=options.counted)
    if is_main_process():
        write_config(cfg, data.trained_on, options.told, keep=options.eval_only)
    if options.eval_only:
        return evaluate_only(cfg, data, last_checkpoint=options.resume)
    callbacks = [callback_named(text)() for text in options.callbacks] if is_main_process() else []
    results = train(cfg, data, resume=options.resume, services=options.services, callbacks=callbacks)
    if is_main_process():
        out = Path(cfg.OUTPUT_DIR)
        weights = next(path for path in (out / BEST_CHECKPOINT, out / "model_final.pth") if path.exists())
        pictures = f"; pictures of predictions beside the truth in {out / 'inference'}" if cfg.DATASETS.TEST else ""
        if cfg.TEST.REPORT and cfg.DATASETS.TEST:
            pictures += _report(out, data)
        logger.info(
            "Done: the model is %s%s. Next: tensorboard --logdir %s shows its curves; resnest-det train --config-file %s "
            "--eval-only evaluates it, on another dataset with DATASETS.TEST",
            weights,
            pictures,
            out,
            out / CONFIG_NAME,
        )
    return results


def _report(folder: Path, data: RunData) -> str:
    """Write the report of a run, and say where it is; what is in its way does not end a run that is done."""
    try:
        path = report_run(folder, data.test, data.test_statistics, data.train_statistics)
    # Not only UserError: no fault in drawing may make a failure of a training that is done.
    except Exception as error:
        logger.warning("no report.html: %s", error)
        return ""
    return "" if path is None else f"; is it good? {path}"


def write_config(cfg: CfgNode, trained_on: Mapping, told: Sequence[str] = (), *, keep: bool) -> None:
    """Write `config.yaml`, see `whole_configuration`, with lines that were `told`; with `keep`, only where there is none."""
    path = Path(cfg.OUTPUT_DIR, CONFIG_NAME)
    if not (keep and path.exists()):
        with atomic_write(path) as file:
            file.writelines(f"# {line}\n" for line in told)
            file.write(whole_configuration(cfg, trained_on))
        logger.info("Full configuration: %s", path)
