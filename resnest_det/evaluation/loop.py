"""Running a model over a dataset and passing its outputs to evaluators."""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tqdm import tqdm

from resnest_det.distributed import get_world_size, is_main_process

logger = logging.getLogger(__name__)

_WARM_UP_BATCHES = 5
_SECONDS_BETWEEN_LOG_LINES = 30


class Evaluator(Protocol):
    """Turns the outputs of a model into figures."""

    def reset(self) -> None:
        """Forget everything processed so far."""

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Take the outputs of some samples."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Gather what all processes took; figures by task on the main process, None on the others."""


class PictureWriter(Protocol):
    """Draws some of the outputs of a model."""

    def begin(self, subfolder: str = "") -> None:
        """Begin an evaluation whose pictures go to that folder inside the writer's own."""

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Draw the chosen ones among these samples."""

    def report(self) -> None:
        """Log where the pictures are."""


@dataclass(frozen=True)
class EvaluationSet:
    """A dataset to evaluate on: its name, its batches (with a length), and the evaluators and picture writers."""

    name: str
    batches: Sequence[list[dict]]
    evaluators: Sequence[Evaluator]
    writers: Sequence[PictureWriter] = ()


def inference_on_dataset(
    model, loader, evaluators: Sequence[Evaluator], writers: Sequence[PictureWriter] = (), pictures: str = ""
) -> dict[str, dict[str, float]]:
    """Predict every batch of `loader` and evaluate.

    The model is put into eval mode and restored afterwards. Logs seconds per image, with and without loading and
    evaluating, leaving out the first batches, in which caches and workers warm up.

    Args:
        model: called with a batch (list of samples), returns one output for each.
        loader: yields batches and has a length.
        pictures: the folder, inside that of each writer, for the pictures of this evaluation.

    Returns:
        on the main process, the results of all evaluators in one dict; empty on the others.
    """
    for evaluator in evaluators:
        evaluator.reset()
    for writer in writers:
        writer.begin(pictures)
    total = len(loader)
    logger.info("inference on %d batches", total)
    clock = _Clock(total)
    bar = tqdm(total=total, desc="inference", unit="batch", disable=not (is_main_process() and sys.stderr.isatty()))
    with _eval_mode(model), torch.inference_mode(), bar:
        for batch in loader:
            clock.loaded()
            outputs = model(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.predicted()
            for evaluator in (*evaluators, *writers):
                evaluator.process(batch, outputs)
            del outputs  # of 150 classes they are a gigabyte at 1024 x 2048: not beside the next
            clock.processed(len(batch), log=bar.disable)
            bar.update()
    clock.log_speed()

    results = {}
    for evaluator in evaluators:
        results.update(evaluator.evaluate() or {})
    for writer in writers:
        writer.report()
    return results


@contextlib.contextmanager
def _eval_mode(model):
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        if modules:
            model.eval()
        yield
    finally:
        for module, training in zip(modules, modes):
            module.training = training


class _Clock:
    """Seconds per image after the warm-up, in all and in the model alone."""

    def __init__(self, total: int):
        self.total = total
        self.warm_up = max(0, min(_WARM_UP_BATCHES, total - 1))
        self.batches = self.images = 0
        self.compute = 0.0
        self.start = self.last_log = time.perf_counter()

    def loaded(self) -> None:
        self.loaded_at = time.perf_counter()

    def predicted(self) -> None:
        self.compute += time.perf_counter() - self.loaded_at

    def processed(self, images: int, log: bool) -> None:
        self.batches += 1
        self.images += images
        now = time.perf_counter()
        if self.batches == self.warm_up:
            self.start, self.compute, self.images = now, 0.0, 0
        elif log and now - self.last_log > _SECONDS_BETWEEN_LOG_LINES:
            self.last_log = now
            counted = self.batches - self.warm_up if self.batches > self.warm_up else self.batches
            left = datetime.timedelta(seconds=int((now - self.start) / counted * (self.total - self.batches)))
            logger.info(
                "inference %d/%d  %.4f s/img  (model %.4f)  eta %s",
                self.batches,
                self.total,
                (now - self.start) / self.images,
                self.compute / self.images,
                left,
            )

    def log_speed(self) -> None:
        if not self.images:
            return
        elapsed = time.perf_counter() - self.start
        logger.info(
            "inference took %s: %.4f s/img, of which the model %.4f s/img (%d images after %d batches of warm-up, %d process%s)",
            datetime.timedelta(seconds=int(elapsed)),
            elapsed / self.images,
            self.compute / self.images,
            self.images,
            self.warm_up,
            get_world_size(),
            "" if get_world_size() == 1 else "es",
        )
