"""What happens in a training run between its steps: averaging, precise norms, checkpoints, evaluation, and stopping in time."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from resnest_det.configuration.solver import build_autocast, build_gradient_clipper, build_lr_scheduler, rate_factor
from resnest_det.configuration.tables import best_metric
from resnest_det.distributed import all_gather_objects, get_world_size, is_main_process, synchronize
from resnest_det.engine.callbacks import Callbacks
from resnest_det.engine.checkpoint import BEST_CHECKPOINT, DetectionCheckpointer, periodic_checkpointer
from resnest_det.engine.events import read_results
from resnest_det.engine.judging import Evaluations
from resnest_det.engine.loop import train_loop
from resnest_det.engine.memory import OutOfMemory, most_that_fit
from resnest_det.engine.precise_bn import update_batch_norm_statistics
from resnest_det.engine.spikes import SpikeWatch
from resnest_det.errors import UserError
from resnest_det.inference.evaluating import flatten_results
from resnest_det.stopping import allowed, raise_if_requested

logger = logging.getLogger(__name__)


class Judge(Protocol):
    """How a run is evaluated; `sets` are what it is evaluated on, none if it is not."""

    sets: Sequence

    def run(self, model: nn.Module, *, last: bool, pictures: str = "") -> dict:
        """Evaluate the model, the last time perhaps with more effort; task to figures on the main process."""


@dataclass(frozen=True)
class Task:
    """What a run does with its model.

    Attributes:
        batches: called with `seed`, `start_iteration` and perhaps `num_workers`, gives this process's batches without end.
        judge: evaluates.
        learner: makes of the model the module that maps a batch to losses.
        names_of: the files of a batch.
        before_step: called with the number of an iteration and that module before it.
        picture: of the model and a batch, to be shown every VIS_PERIOD iterations.
        accumulate: see `train_loop`.
        what_fits: called with an iteration that had no room, the error, and how many of its images would have had (0: unknown, or
            none), says what to set; None speaks of a detector's keys.
    """

    batches: Callable[..., Iterator]
    judge: Judge
    names_of: Callable[[Any], list[str]]
    learner: Callable[[nn.Module], nn.Module] = lambda model: model
    before_step: Callable[[int, nn.Module], None] | None = None
    picture: Callable[[nn.Module, Any], np.ndarray] | None = None
    accumulate: int = 1
    what_fits: Callable[[int, OutOfMemory, int], str] | None = None


@dataclass(frozen=True)
class Trained:
    """What is trained: the model, its moving average if there is one, and what the steps change beside them."""

    model: nn.Module
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @property
    def to_use(self) -> nn.Module:
        """The model that is evaluated, and used afterwards."""
        return self.model if self.averaged is None else self.averaged.module


class Run:
    """What the steps of a run share.

    Args:
        facts: what every checkpoint keeps of the run, `seed` among it.
        start: the first iteration.
        log: of the main process; None on others.
    """

    def __init__(
        self,
        cfg: CfgNode,
        trained: Trained,
        task: Task,
        checkpointer: DetectionCheckpointer,
        facts: dict,
        start: int,
        log: Callbacks | None,
    ):
        self.cfg = cfg
        self.trained = trained
        self.task = task
        self.network = task.learner(trained.model)
        self.checkpointer = checkpointer
        self.facts = facts
        self.seed = facts["seed"]
        self.start = start
        self.log = log
        self.spikes = SpikeWatch()
        self.done = start - 1  # the last iteration
        period = cfg.TEST.EVAL_PERIOD
        # Of a single evaluation, that after the last iteration, model_final.pth is the best.
        self.chooses = 0 < period < cfg.SOLVER.MAX_ITER and bool(task.judge.sets)
        known = read_results(cfg.OUTPUT_DIR, start) if is_main_process() and start else []
        self.evaluations = Evaluations(known, best_metric(cfg))

    def train(self) -> None:
        """Do the iterations up to SOLVER.MAX_ITER, or until evaluations get no better, and everything due between them.

        Raises:
            KeyboardInterrupt: a signal came; there is a checkpoint of the last iteration.
            UserError: there is no room for a step; the message says what would fit.
        """
        cfg, device = self.cfg, next(self.trained.model.parameters()).device
        if self.start and self._evaluation_due(self.done) and not any(each == self.done for each, _ in self._known()):
            # The run was killed between this checkpoint and the end of the evaluation that followed it.
            self.evaluate(self.done)
        if self._ended():
            return
        autocast = build_autocast(cfg, device)
        scheduler = build_lr_scheduler(cfg, self.trained.optimizer, self.start)
        batches = self.task.batches(seed=self.seed, start_iteration=self.start)
        logger.info("Training from iteration %d to %d", self.start, cfg.SOLVER.MAX_ITER)
        last: list = []
        try:
            train_loop(
                _distributed(self.network, device),
                _noting(batches, last),
                self.trained.optimizer,
                scheduler,
                start_iteration=self.start,
                max_iter=cfg.SOLVER.MAX_ITER,
                seed=self.seed,
                scaler=self.trained.scaler,
                autocast=autocast,
                names_of=self.task.names_of,
                clip_gradients=build_gradient_clipper(cfg),
                log=self.log and Callbacks([*self.log.callbacks, self.spikes]),
                before_step=self.task.before_step and (lambda iteration: self.task.before_step(iteration, self.network)),
                after_step=self._after_step(),
                accumulate=self.task.accumulate,
            )
        except KeyboardInterrupt:
            if is_main_process() and self.done >= self.start:
                if self.checkpointer.last_saved != self.done:
                    self.checkpointer.save(f"model_{self.done:07d}", iteration=self.done, **self.facts)
                logger.info("Stopped after iteration %d, of which there is a checkpoint: --resume goes on from there", self.done)
            raise
        except OutOfMemory as error:
            memory = error
        else:
            batches.close()
            raise_if_requested()  # a signal may have come while the workers ended
            return
        raise UserError(self._what_fits(memory, last[0], autocast))

    def evaluate(self, iteration: int, *, last: bool = False) -> dict:
        """Evaluate the current model, the `last` time also with test-time augmentation, and record the results."""
        model = self.trained.to_use
        if get_world_size() > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        # Pictures of the last evaluation stand where those of --eval-only do; earlier ones are kept, to watch the model learn.
        results = self.task.judge.run(model, last=last, pictures="" if last else f"iteration_{iteration:07d}")
        if self.log is not None:
            figures = flatten_results(results)
            better = self.evaluations.add(iteration, figures)
            # Before the line in metrics.json, by which a resumed run knows that this evaluation need not be done again.
            if self.chooses and better:
                best = {"metric": self.evaluations.metric, "value": figures.get(self.evaluations.metric), "iteration": iteration}
                self.checkpointer.save_to_use(
                    BEST_CHECKPOINT.removesuffix(".pth"), model, iteration=self.done, best=best, **self.facts
                )
            self.log.results(iteration, figures)
            self._tell_of_stuck_classes()
        synchronize()
        return results

    def finish(self) -> dict:
        """The results of the model that the training has ended with; there is a model_final.pth of it."""
        stopped = self._ended() and self.done + 1 < self.cfg.SOLVER.MAX_ITER
        if is_main_process():
            if stopped:
                iteration, value = self.evaluations.best()
                logger.info(
                    "Stopped after iteration %d: no evaluation of the last %d has a better %s than %.3f, that of iteration %d",
                    self.done,
                    self.cfg.TEST.PATIENCE,
                    self.evaluations.metric,
                    value,
                    iteration,
                )
            # The run may have been killed between its last two checkpoints, both of the same iteration.
            if not self.checkpointer.get_checkpoint_file().endswith("model_final.pth"):
                self.checkpointer.save("model_final", iteration=self.done, **self.facts)
        return self.evaluate(max(self.done + 1, 0 if stopped else self.cfg.SOLVER.MAX_ITER), last=True)

    def _known(self) -> list[tuple[int, Mapping[str, float]]]:
        return all_gather_objects(self.evaluations.results)[0]

    def _ended(self) -> bool:
        """Whether the last evaluations have shown nothing better; the same in all processes."""
        patience = self.cfg.TEST.PATIENCE
        return bool(patience) and all_gather_objects(self.evaluations.without_better() >= patience)[0]

    def _after_step(self) -> list[Callable[[int, list[dict]], object]]:
        # Exact batch-norm statistics come before the checkpoint, which should hold them. The evaluation comes after it: if it
        # fails, the checkpoint is safe.
        actions: list[Callable[[int, list[dict]], object]] = [self._note_done]
        if self.cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.trained.to_use.train()):
            actions.append(self._precise_bn)
        if is_main_process():
            solver = self.cfg.SOLVER
            periodic = periodic_checkpointer(
                self.checkpointer, solver.CHECKPOINT_PERIOD, solver.MAX_ITER, solver.CHECKPOINTS_KEPT
            )
            actions.append(lambda iteration, batch: periodic.step(iteration, **self.facts))
            actions.append(self._tell_of_spikes)
        actions.append(self._evaluate_if_due)
        if is_main_process() and self.task.picture and self.cfg.VIS_PERIOD > 0:
            actions.append(self._show)
        return actions

    def _note_done(self, iteration: int, batch: Any) -> None:
        self.done = iteration
        if self.trained.averaged is not None:
            self.trained.averaged.update_parameters(self.trained.model)

    def _evaluation_due(self, iteration: int) -> bool:
        # The evaluation after the last iteration is outside the loop, because resuming a finished run repeats it.
        period = self.cfg.TEST.EVAL_PERIOD
        return period > 0 and (iteration + 1) % period == 0 and iteration + 1 != self.cfg.SOLVER.MAX_ITER

    def _precise_bn(self, iteration: int, batch: Any) -> None:
        if not self._evaluation_due(iteration) and iteration + 1 != self.cfg.SOLVER.MAX_ITER:
            return
        # Its own stream of batches, the same each time, disturbs neither the training data nor a resumed run.
        own_seed = int(np.random.SeedSequence((self.seed, 1)).generate_state(1)[0])
        count = self.cfg.TEST.PRECISE_BN.NUM_ITER
        logger.info("Running precise batch norm over %d batches", count)
        batches = self.task.batches(seed=own_seed, num_workers=0)
        update_batch_norm_statistics(self.task.learner(self.trained.to_use), batches, count)

    def _evaluate_if_due(self, iteration: int, batch: Any) -> bool:
        if not self._evaluation_due(iteration):
            return False
        with allowed():  # it takes long, and leaves the model as it is
            self.evaluate(iteration)
        return self._ended()

    def _show(self, iteration: int, batch: Any) -> None:
        if (iteration + 1) % self.cfg.VIS_PERIOD == 0:
            self.log.image(iteration, "truth and prediction", self.task.picture(self.trained.model, batch))

    def _tell_of_spikes(self, iteration: int, batch: Any) -> None:
        if self.spikes.found:
            logger.warning("%s; images of this step: %s", self.spikes.found, ", ".join(self.task.names_of(batch)))

    def _tell_of_stuck_classes(self) -> None:
        name = f"{self.evaluations.metric.rpartition('/')[0]}/AP-"
        if stuck := self.evaluations.stuck(name):
            logger.warning(
                "%d classes have not been found once in the last evaluations, while others have: %s; are there enough objects of "
                "them, of a size that an anchor fits, and labelled alike?",
                len(stuck),
                ", ".join(stuck[:10]),
            )

    def _what_fits(self, error: OutOfMemory, batch: Any, autocast: torch.autocast) -> str:
        """The message for a step that had no room, after trying smaller ones on the images that it had."""
        total, processes = self.cfg.SOLVER.IMS_PER_BATCH, get_world_size()
        text = f"SOLVER.IMS_PER_BATCH {total} at iteration {self.done + 1}: {error}; "

        def step(images: Any) -> None:
            self.trained.optimizer.zero_grad()
            with autocast:
                loss = sum(self.network(images).values())
            loss.backward()

        # With several processes, the others wait for what this one has not sent.
        fits = most_that_fit(step, batch, least=1) if processes == 1 else 0
        if self.task.what_fits is not None:
            return self.task.what_fits(self.done + 1, error, fits)
        if fits:
            rate = self.cfg.SOLVER.BASE_LR * rate_factor(self.cfg.SOLVER.OPTIMIZER, fits / total)
            text += f"{fits} of the same images fit: set SOLVER.IMS_PER_BATCH {fits} and SOLVER.BASE_LR {rate:.2g}"
            parts = math.ceil(total / fits)
            if total // parts > 1:
                text += f", or SOLVER.ACCUMULATE {parts}"
        else:
            half = max(processes, total // 2)
            text += f"try SOLVER.IMS_PER_BATCH {half}" if processes > 1 and half < total else "not even one of its images fits"
        return f"{text}, a smaller INPUT.MIN_SIZE_TRAIN, or SOLVER.AMP.ENABLED True; --auto-batch measures what fits"


def _noting(batches, last: list):
    """`batches`, of which `last` holds the one that was last."""
    for batch in batches:
        last[:] = [batch]
        yield batch


def file_names(batch: Any) -> list[str]:
    """The files of a batch."""
    return [str(sample.get("file_name", "?")) for sample in batch]


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if get_world_size() == 1:
        return model
    with warnings.catch_warnings():
        # Newer torch renames the argument.
        warnings.filterwarnings("ignore", message=".broadcast_buffers. is deprecated", category=FutureWarning)
        # In training each process keeps its own statistics of plain batch norm, as in Detectron2; `evaluate` makes them equal.
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)
