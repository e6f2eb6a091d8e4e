"""A training run as a configuration describes it: the loop, with model, data, checkpoints and evaluation around it."""

import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from fvcore.common.config import CfgNode

from resnest_det.configuration.anchor_fit import anchor_doubts
from resnest_det.configuration.classes import count_classes
from resnest_det.configuration.data import RunData, build_train_loader, hold_against_checkpoint, read_run_data, tell_of_data
from resnest_det.configuration.model import build_model, check_batch_norm
from resnest_det.configuration.nodes import leaves, value_of
from resnest_det.configuration.solver import build_average, build_optimizer, build_scaler, in_iterations, scale_to_world_size
from resnest_det.configuration.standalone import whole_configuration
from resnest_det.configuration.tables import tasks_of
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.distributed import all_gather_objects, get_world_size, is_main_process
from resnest_det.drawing.training import training_picture
from resnest_det.engine.averaging import KEY as AVERAGE
from resnest_det.engine.averaging import load_averaged
from resnest_det.engine.callbacks import Callback, Callbacks
from resnest_det.engine.checkpoint import DetectionCheckpointer, restore_optimizer
from resnest_det.engine.events import ProgressBar, TrainingLog, keep_earlier_metrics
from resnest_det.engine.loop import seed_everything
from resnest_det.engine.writers import open_services
from resnest_det.errors import UserError
from resnest_det.files import remove_unfinished
from resnest_det.inference.evaluating import verify_results
from resnest_det.inference.exported import ExportedDetector, exported_format
from resnest_det.training.evaluation import Evaluation
from resnest_det.training.steps import Run, Task, Trained, file_names
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.downloads import resolve_weights

logger = logging.getLogger(__name__)


def prepare(cfg: CfgNode, *, train: bool, counted: Mapping[str, str] = MappingProxyType({})) -> tuple[CfgNode, RunData]:
    """Read the data of a run, tell what it is, and complete the configuration by it.

    Args:
        train: whether the run trains, and does not only evaluate.
        counted: keys to take from the data, see `resnest_det.configuration.classes.count_classes`.

    Returns:
        the configuration for as many processes as there are, classes counted and epochs as iterations; and the data.

    Raises:
        UserError: see `read_run_data`.
    """
    if train:
        cfg = scale_to_world_size(cfg, get_world_size())
    data = read_run_data(cfg, train=train, counted=counted)
    tell_of_data(data)
    for line in anchor_doubts(cfg, data.train_statistics) if train else ():
        logger.warning(line)
    of_data = count_classes(cfg, data.trained_on, counted)
    for key in counted:
        if value_of(cfg, key) != value_of(of_data, key):
            logger.info("%s is %d, as the data has it", key, value_of(of_data, key))
    return in_iterations(of_data, data.train.repeat_factors.sum()) if train else of_data, data


def train(
    cfg: CfgNode, data: RunData, *, resume: bool = False, services: Sequence[str] = (), callbacks: Sequence[Callback] = ()
) -> dict:
    """Train as `cfg` says on this process's device, evaluate at the end, and return the results (main process).

    Args:
        cfg, data: of `prepare`.
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one, with the losses that an uninterrupted
            run would have.
        services: of `resnest_det.engine.writers.SERVICES`, which get the curves too.
        callbacks: what else listens, used on the main process.

    Raises:
        UserError: something in the configuration, the data or the checkpoint cannot be used, a loss is not finite, a
            checkpoint cannot be written, or the results are not TEST.EXPECTED_RESULTS.
    """
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    evaluation = Evaluation(cfg, data.test)
    seed = choose_seed(cfg.SEED)
    seed_everything(seed)
    model = build_model(cfg)
    images, parts = cfg.SOLVER.IMS_PER_BATCH // get_world_size(), cfg.SOLVER.ACCUMULATE
    if parts > images:
        raise UserError(f"SOLVER.ACCUMULATE {parts} is too large: a process has {images} images of SOLVER.IMS_PER_BATCH")
    check_batch_norm(model, images // parts, parts)
    optimizer = build_optimizer(cfg, model)
    device = next(model.parameters()).device
    scaler = build_scaler(cfg, device)

    trained = Trained(model, build_average(cfg, model), optimizer, scaler)
    checkpointer = checkpointer_of(trained, cfg.OUTPUT_DIR)
    start = 0
    if resume and checkpointer.has_checkpoint():
        saved = checkpointer.resume()
        held = hold_against_checkpoint(cfg, data, saved.get("trained_on"), checkpointer.get_checkpoint_file())
        if held is not data:
            data, evaluation = held, Evaluation(cfg, held.test)
        start = restore(trained, saved, checkpointer.get_checkpoint_file())
        seed = resumed_seed(cfg.SEED, seed, saved.get("seed"))
    else:
        load_initial_weights(cfg, model, classes=data.trained_on)
    logger.info("Seed %d%s", seed, ", drawn at random because SEED is negative" if cfg.SEED < 0 and not start else "")
    task = Task(
        batches=partial(build_train_loader, cfg, data.train),
        judge=evaluation,
        names_of=file_names,
        picture=lambda model, batch: training_picture(model, batch[0], cfg.INPUT.FORMAT, data.train.class_names),
        accumulate=cfg.SOLVER.ACCUMULATE,
    )
    facts = {"seed": seed, "trained_on": data.trained_on, "config": whole_configuration(cfg, data.trained_on)}
    results = run_to_end(cfg, trained, task, checkpointer, facts, start, resume=resume, services=services, callbacks=callbacks)
    if is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results


def checkpointer_of(trained: Trained, folder: str) -> DetectionCheckpointer:
    """What saves all that is trained in `folder`."""
    kept = {"optimizer": trained.optimizer, "grad_scaler": trained.scaler}
    if trained.averaged is not None:
        kept[AVERAGE] = trained.averaged
    return DetectionCheckpointer(trained.model, folder, **kept)


def restore(trained: Trained, saved: Mapping, path: str) -> int:
    """Go on with what the checkpoint `path` has beside the model, `saved`; returns the first iteration.

    Raises:
        UserError: it does not fit.
    """
    restore_optimizer(trained.optimizer, saved["optimizer"])
    if trained.scaler.is_enabled() and saved.get("grad_scaler"):
        trained.scaler.load_state_dict(saved["grad_scaler"])
    if trained.averaged is not None and not load_averaged(trained.averaged, saved, path):
        logger.warning("a moving average is asked for, but the run began without: the average begins now")
    return saved["iteration"] + 1


def run_to_end(
    cfg: CfgNode,
    trained: Trained,
    task: Task,
    checkpointer: DetectionCheckpointer,
    facts: dict,
    start: int,
    *,
    resume: bool,
    services: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    settings: Mapping[str, object] | None = None,
) -> dict:
    """Train from iteration `start` on, evaluate, and return the results (main process).

    Args:
        cfg: SOLVER, TEST, VIS_PERIOD and OUTPUT_DIR of it are read.
        facts: see `Run`.
        resume, services, callbacks: see `train`.
        settings: for the services, by name; None for all of `cfg`.

    Raises:
        UserError: see `train`.
    """
    log = None
    if is_main_process():
        remove_unfinished(cfg.OUTPUT_DIR)
        if not resume:
            keep_earlier_metrics(cfg.OUTPUT_DIR)
        told = dict(leaves(cfg)) if settings is None else settings
        writers = open_services(services, cfg.OUTPUT_DIR, told, resumed=start > 0)
        log = Callbacks(
            [
                TrainingLog(cfg.OUTPUT_DIR, start_iteration=start, max_iter=cfg.SOLVER.MAX_ITER, writers=writers),
                ProgressBar(start, cfg.SOLVER.MAX_ITER),
                *callbacks,
            ]
        )
    try:
        run = Run(cfg, trained, task, checkpointer, facts, start, log)
        if start < cfg.SOLVER.MAX_ITER:
            run.train()
        else:
            logger.info("Nothing to train: %d iterations are done, of %d", start, cfg.SOLVER.MAX_ITER)
        return run.finish()
    finally:
        if log is not None:
            log.close()


def evaluate_only(cfg: CfgNode, data: RunData, *, last_checkpoint: bool = False) -> dict:
    """Evaluate MODEL.WEIGHTS, a checkpoint or an exported detector, or the last checkpoint in OUTPUT_DIR.

    Args:
        cfg, data: of `prepare`.

    Raises:
        UserError: there are no weights, they do not fill the whole model, or they are of other classes than the data.
    """
    evaluation = Evaluation(cfg, data.test)
    exported = not last_checkpoint and exported_format(cfg.MODEL.WEIGHTS)
    model = exported_model(cfg) if exported else build_model(cfg)
    checkpointer = None if exported else DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    if exported:
        path, trained_on = model.path, model.settings["trained_on"]
    elif last_checkpoint and checkpointer.has_checkpoint():
        path = checkpointer.get_checkpoint_file()
        saved = checkpointer.load(path)
        load_averaged(model, saved, path)
        trained_on = saved.get("trained_on")
    elif cfg.MODEL.WEIGHTS:
        load_initial_weights(cfg, model, whole=True)
        path = resolve_weights(cfg.MODEL.WEIGHTS)
        trained_on = read_checkpoint(path).get("trained_on")
    else:
        raise UserError("--eval-only needs MODEL.WEIGHTS, or --resume with a checkpoint in OUTPUT_DIR")
    held = hold_against_checkpoint(cfg, data, trained_on, path)
    if held is not data:
        evaluation = Evaluation(cfg, held.test)
    results = evaluation.run(model, last=True)
    if is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results


def exported_model(cfg: CfgNode) -> ExportedDetector:
    """The detector in the file MODEL.WEIGHTS.

    Raises:
        UserError: the file cannot be used, it does other tasks than the configuration's model, or test-time augmentation is on,
            which needs the parts of a model.
    """
    model, tasks = ExportedDetector(cfg.MODEL.WEIGHTS), tasks_of(cfg)
    wanted = {"boxes": tasks.objects, "masks": tasks.masks, "labels": tasks.pixels, "panoptic": tasks.panoptic}
    if any(wanted[name] != (name in model.output_names) for name in wanted):
        has = ", ".join(name for name in wanted if name in model.output_names)
        needs = ", ".join(name for name in wanted if wanted[name])
        raise UserError(f"MODEL.WEIGHTS {model.path} gives {has}, but the configuration's model gives {needs}")
    if cfg.TEST.AUG.ENABLED:
        raise UserError(f"TEST.AUG.ENABLED needs the parts of a model; MODEL.WEIGHTS {model.path} is an exported file")
    return model


def choose_seed(configured: int) -> int:
    """SEED; if it is negative, one drawn at random for all processes."""
    return configured if configured >= 0 else all_gather_objects(secrets.randbits(31))[0]


def resumed_seed(configured: int, chosen: int, saved: int | None) -> int:
    """The seed to resume with: the checkpoint's, unless the configuration sets another."""
    if saved is None or configured == saved:
        return chosen
    if configured < 0:
        return saved
    logger.warning("SEED is %d but the run began with %d: losses will not be those of an uninterrupted run", configured, saved)
    return configured
