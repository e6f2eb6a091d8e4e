"""A training run as a configuration describes it: the loop, with model, data, checkpoints and evaluation around it."""

import logging
import secrets
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnest_det.configuration.data import TrainingImages, build_train_loader, hold_against_checkpoint, read_run_data
from resnest_det.configuration.evaluation import build_evaluation_sets
from resnest_det.configuration.model import build_model, build_test_time_augmentation, check_batch_norm
from resnest_det.configuration.solver import build_gradient_clipper, build_lr_scheduler, build_optimizer, scale_to_world_size
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.data.coco import Dataset
from resnest_det.distributed import all_gather_objects, get_world_size, is_main_process, synchronize
from resnest_det.drawing.training import training_picture
from resnest_det.engine.checkpoint import DetectionCheckpointer, periodic_checkpointer, restore_optimizer
from resnest_det.engine.events import TrainingLog, keep_earlier_metrics
from resnest_det.engine.loop import seed_everything, train_loop
from resnest_det.engine.precise_bn import update_batch_norm_statistics
from resnest_det.errors import UserError
from resnest_det.files import remove_unfinished
from resnest_det.inference.evaluating import evaluate, evaluate_augmented, flatten_results, ready_for_inference, verify_results
from resnest_det.stopping import allowed, raise_if_requested
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.downloads import resolve_weights

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, *, resume: bool = False) -> dict:
    """Train as `cfg` says on this process's device, evaluate at the end, and return the results (main process).

    Args:
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one, with the losses that an uninterrupted
            run would have.

    Raises:
        UserError: something in the configuration, the data or the checkpoint cannot be used, a loss is not finite, a
            checkpoint cannot be written, or the results are not TEST.EXPECTED_RESULTS.
    """
    cfg = scale_to_world_size(cfg, get_world_size())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    data = read_run_data(cfg, train=True)
    evaluation = Evaluation(cfg, data.test)
    seed = choose_seed(cfg.SEED)
    seed_everything(seed)
    model = build_model(cfg)
    check_batch_norm(model, cfg.SOLVER.IMS_PER_BATCH // get_world_size())
    optimizer = build_optimizer(cfg, model)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP.ENABLED and device.type == "cuda")

    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, grad_scaler=scaler)
    start = 0
    if resume and checkpointer.has_checkpoint():
        saved = checkpointer.resume()
        held = hold_against_checkpoint(cfg, data, saved.get("trained_on"), checkpointer.get_checkpoint_file())
        if held is not data:
            data, evaluation = held, Evaluation(cfg, held.test)
        start = saved["iteration"] + 1
        restore_optimizer(optimizer, saved["optimizer"])
        if scaler.is_enabled() and saved.get("grad_scaler"):
            scaler.load_state_dict(saved["grad_scaler"])
        seed = resumed_seed(cfg.SEED, seed, saved.get("seed"))
    else:
        load_initial_weights(cfg, model, classes=data.trained_on)
    logger.info("Seed %d%s", seed, ", drawn at random because SEED is negative" if cfg.SEED < 0 and not start else "")

    log = None
    if is_main_process():
        remove_unfinished(cfg.OUTPUT_DIR)
        if not resume:
            keep_earlier_metrics(cfg.OUTPUT_DIR)
        log = TrainingLog(cfg.OUTPUT_DIR, start_iteration=start, max_iter=cfg.SOLVER.MAX_ITER)
    try:
        run = _Run(cfg, model, data.train, evaluation, checkpointer, {"seed": seed, "trained_on": data.trained_on}, log)
        if start < cfg.SOLVER.MAX_ITER:
            run.train(optimizer, scaler, start)
        else:
            logger.info("Nothing to train: %d iterations are done and SOLVER.MAX_ITER is %d", start, cfg.SOLVER.MAX_ITER)
            # The run may have been killed between its last two checkpoints, both of the same iteration.
            if is_main_process() and not checkpointer.get_checkpoint_file().endswith("model_final.pth"):
                checkpointer.save("model_final", iteration=start - 1, **run.facts)
        results = run.evaluate(max(start, cfg.SOLVER.MAX_ITER), last=True)
    finally:
        if log is not None:
            log.close()
    if is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results


def evaluate_only(cfg: CfgNode, *, last_checkpoint: bool = False) -> dict:
    """Evaluate MODEL.WEIGHTS, or the last checkpoint in OUTPUT_DIR.

    Raises:
        UserError: there are no weights, they do not fill the whole model, or they are of other classes than the data.
    """
    data = read_run_data(cfg, train=False)
    evaluation = Evaluation(cfg, data.test)
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    if last_checkpoint and checkpointer.has_checkpoint():
        path = checkpointer.get_checkpoint_file()
        trained_on = checkpointer.load(path).get("trained_on")
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


class Evaluation:
    """The evaluation of a configuration, built before training begins so that its errors show at once."""

    def __init__(self, cfg: CfgNode, datasets: Sequence[Dataset]):
        self.sets = build_evaluation_sets(cfg, datasets)
        self.augmented_sets = build_evaluation_sets(cfg, datasets, augmented=True) if cfg.TEST.AUG.ENABLED else []
        self.augment = partial(build_test_time_augmentation, cfg)
        self.fold_norms = cfg.TEST.FOLD_NORMS

    def run(self, model: nn.Module, *, last: bool) -> dict:
        """Evaluate `model`, and the `last` time also with test-time augmentation; see `evaluate`."""
        model = ready_for_inference(model) if self.fold_norms else model
        results = evaluate(model, self.sets)
        if last and self.augmented_sets:
            results |= evaluate_augmented(model, self.augment, self.augmented_sets)
        return results


class _Run:
    """What the steps of a run share."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        images: TrainingImages,
        evaluation: Evaluation,
        checkpointer: DetectionCheckpointer,
        facts: dict,
        log: TrainingLog | None,
    ):
        self.cfg = cfg
        self.model = model
        self.images = images
        self.evaluation = evaluation
        self.checkpointer = checkpointer
        # What every checkpoint keeps of the run.
        self.facts = facts
        self.seed = facts["seed"]
        self.log = log
        self.done: int | None = None  # the last iteration

    def train(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, start: int) -> None:
        """Do the iterations from `start` to SOLVER.MAX_ITER, and everything due between them.

        Raises:
            KeyboardInterrupt: a signal came; there is a checkpoint of the last iteration.
        """
        cfg, device = self.cfg, next(self.model.parameters()).device
        scheduler = build_lr_scheduler(cfg, optimizer, start)
        batches = build_train_loader(cfg, self.images, seed=self.seed, start_iteration=start)
        logger.info("Training from iteration %d to %d", start, cfg.SOLVER.MAX_ITER)
        try:
            train_loop(
                _distributed(self.model, device),
                batches,
                optimizer,
                scheduler,
                start_iteration=start,
                max_iter=cfg.SOLVER.MAX_ITER,
                seed=self.seed,
                scaler=scaler,
                autocast=torch.autocast(
                    device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED
                ),
                names_of=_file_names,
                clip_gradients=build_gradient_clipper(cfg),
                log=self.log,
                after_step=self._after_step(),
            )
        except KeyboardInterrupt:
            if is_main_process() and self.done is not None:
                if self.checkpointer.last_saved != self.done:
                    self.checkpointer.save(f"model_{self.done:07d}", iteration=self.done, **self.facts)
                logger.info("Stopped after iteration %d, of which there is a checkpoint: --resume goes on from there", self.done)
            raise
        batches.close()
        raise_if_requested()  # a signal may have come while the workers ended

    def evaluate(self, iteration: int, *, last: bool = False) -> dict:
        """Evaluate the current model, the `last` time also with test-time augmentation, and record the results."""
        if get_world_size() > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        results = self.evaluation.run(self.model, last=last)
        if self.log is not None:
            self.log.results(iteration, flatten_results(results))
        synchronize()
        return results

    def _after_step(self) -> list[Callable[[int, list[dict]], None]]:
        # Exact batch-norm statistics come before the checkpoint, which should hold them. The evaluation comes after it: if it
        # fails, the checkpoint is safe.
        actions: list[Callable[[int, list[dict]], None]] = [self._note_done]
        if self.cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            actions.append(self._precise_bn)
        if is_main_process():
            periodic = periodic_checkpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.SOLVER.MAX_ITER)
            actions.append(lambda iteration, batch: periodic.step(iteration, **self.facts))
        actions.append(self._evaluate_if_due)
        if is_main_process() and self.cfg.VIS_PERIOD > 0:
            actions.append(self._show)
        return actions

    def _note_done(self, iteration: int, batch: list[dict]) -> None:
        self.done = iteration

    def _evaluation_due(self, iteration: int) -> bool:
        period = self.cfg.TEST.EVAL_PERIOD
        return period > 0 and (iteration + 1) % period == 0

    def _precise_bn(self, iteration: int, batch: list[dict]) -> None:
        if not self._evaluation_due(iteration) and iteration + 1 != self.cfg.SOLVER.MAX_ITER:
            return
        # Its own stream of batches, the same each time, disturbs neither the training data nor a resumed run.
        own_seed = int(np.random.SeedSequence((self.seed, 1)).generate_state(1)[0])
        count = self.cfg.TEST.PRECISE_BN.NUM_ITER
        logger.info("Running precise batch norm over %d batches", count)
        batches = build_train_loader(self.cfg, self.images, seed=own_seed, num_workers=0)
        update_batch_norm_statistics(self.model, batches, count)

    def _evaluate_if_due(self, iteration: int, batch: list[dict]) -> None:
        # The evaluation after the last iteration is outside the loop, because resuming a finished run repeats it.
        if self._evaluation_due(iteration) and iteration + 1 != self.cfg.SOLVER.MAX_ITER:
            with allowed():  # it takes long, and leaves the model as it is
                self.evaluate(iteration)

    def _show(self, iteration: int, batch: list[dict]) -> None:
        if (iteration + 1) % self.cfg.VIS_PERIOD == 0:
            picture = training_picture(self.model, batch[0], self.cfg.INPUT.FORMAT, self.images.class_names)
            self.log.image(iteration, "truth and prediction", picture)


def _file_names(batch: list[dict]) -> list[str]:
    return [str(sample.get("file_name", "?")) for sample in batch]


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if get_world_size() == 1:
        return model
    with warnings.catch_warnings():
        # Newer torch renames the argument.
        warnings.filterwarnings("ignore", message=".broadcast_buffers. is deprecated", category=FutureWarning)
        # In training each process keeps its own statistics of plain batch norm, as in Detectron2; `evaluate` makes them equal.
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)


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
