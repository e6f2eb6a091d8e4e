"""What a training run reports: the progress line, metrics.json and the curves."""

import datetime
import json
import logging
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer
from tqdm import tqdm

from resnest_det.engine.callbacks import Callback
from resnest_det.engine.writers import TensorBoard, Writer
from resnest_det.errors import printable
from resnest_det.files import atomic_write, open_unlinked

logger = logging.getLogger(__name__)

PERIOD = 20  # iterations between progress lines, and the window of their medians, as in Detectron2
PROGRESS = "progress"  # an attribute of the records that are progress lines
TIMED_FROM = 2  # the first iterations pay for caches and worker start-up


class TrainingLog(Callback):
    """Writes the scalars of each iteration for people and programs.

    `metrics.json` has one JSON object a line: every iteration with its exact values under Detectron2's keys (`iteration`,
    `total_loss`, the losses, `lr`, `time`, `data_time`), and one for each evaluation (`bbox/AP`, …). The progress line and
    the curves in TensorBoard and in `writers` show medians over the last 20 iterations. Only the main process makes one.
    """

    def __init__(self, output_dir: str, *, start_iteration: int, max_iter: int, writers: Sequence[Writer] = ()):
        self.start_iteration = start_iteration
        self.max_iter = max_iter
        self.histories: dict[str, HistoryBuffer] = {}
        path = Path(output_dir, "metrics.json")
        cut_metrics(path, start_iteration)
        self.metrics_file = open_unlinked(path, "a")
        self.writers = [TensorBoard(output_dir, start_iteration), *writers]

    def iteration(self, iteration: int, losses: Mapping[str, float], *, lr: float, time: float, data_time: float) -> None:
        """Record one iteration: losses averaged over processes, learning rate, seconds in all and seconds of waiting for data."""
        scalars = {"total_loss": sum(losses.values()), **losses, "lr": lr, "data_time": data_time}
        if iteration - self.start_iteration >= TIMED_FROM:
            scalars["time"] = time
        for name, value in scalars.items():
            self.histories.setdefault(name, HistoryBuffer()).update(value, iteration)
        if "time" in self.histories:
            scalars["eta_seconds"] = self._seconds_left(iteration)
        self._write_line(iteration, scalars)
        due = (iteration + 1) % PERIOD == 0 or iteration == self.max_iter - 1
        # The first line, with its estimate of the time left, comes as soon as an iteration was timed.
        if due or iteration == self.start_iteration + TIMED_FROM:
            self._print(iteration, losses)
        if due:
            exact = ("lr", "eta_seconds")
            shown = {name: value if name in exact else self.histories[name].median(PERIOD) for name, value in scalars.items()}
            for writer in self.writers:
                writer.scalars(shown, iteration)

    def results(self, iteration: int, results: Mapping[str, float]) -> None:
        """Record the figures of an evaluation, such as {"bbox/AP": 37.5}."""
        self._write_line(iteration, results)
        for writer in self.writers:
            writer.scalars(results, iteration)

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        """Show a picture, (H,W,3) uint8 RGB, beside the curves."""
        for writer in self.writers:
            writer.image(name, image, iteration)

    def close(self) -> None:
        self.metrics_file.close()
        for writer in self.writers:
            writer.close()

    def _seconds_left(self, iteration: int) -> float:
        return self.histories["time"].median(1000) * (self.max_iter - iteration - 1)

    def _write_line(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self.metrics_file.write(json.dumps({"iteration": iteration, **scalars}, sort_keys=True) + "\n")
        self.metrics_file.flush()

    def _print(self, iteration: int, losses: Mapping[str, float]) -> None:
        history = self.histories
        parts = []
        if "time" in history:
            parts.append(f"eta: {datetime.timedelta(seconds=int(self._seconds_left(iteration)))}")
        parts.append(f"iter: {iteration}")
        parts += [f"{name}: {history[name].median(PERIOD):.4g}" for name in ("total_loss", *losses)]
        if "time" in history:
            parts.append(f"time: {history['time'].global_avg():.4f}  last_time: {history['time'].latest():.4f}")
        parts.append(f"data_time: {history['data_time'].avg(PERIOD):.4f}  last_data_time: {history['data_time'].latest():.4f}")
        parts.append(f"lr: {history['lr'].latest():.5g}")
        parts.append(f"max_mem: {peak_memory_mib():.0f}M")
        logger.info("  ".join(parts), extra={PROGRESS: True})


class ProgressBar(Callback):
    """A bar on standard error, where that is a terminal; the lines of progress are then only in files.

    Args:
        start_iteration, max_iter: of the run.
    """

    def __init__(self, start_iteration: int, max_iter: int):
        self._bar = tqdm(
            total=max_iter,
            initial=start_iteration,
            desc="training",
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def iteration(self, iteration: int, losses: Mapping[str, float], *, lr: float, **times: float) -> None:
        self._bar.set_postfix({"loss": f"{sum(losses.values()):.3g}", "lr": f"{lr:.2g}"}, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def read_results(folder: str, before: int) -> list[tuple[int, dict[str, float]]]:
    """(iteration, figures) of the evaluations in metrics.json before an iteration; none if there is no file."""
    path = Path(folder, "metrics.json")
    entries = [each for each, _ in _entries(path)] if path.exists() else []
    return [
        (each["iteration"], {name: value for name, value in each.items() if isinstance(value, (int, float)) and "/" in name})
        for each in entries
        if "total_loss" not in each and each["iteration"] < before
    ]


def cut_metrics(path: Path, start_iteration: int) -> None:
    """Keep in metrics.json only complete lines of iterations before `start_iteration`; the rest will be repeated."""
    if not path.exists():
        return
    kept = "".join(line for entry, line in _entries(path) if entry["iteration"] < start_iteration)
    if kept != path.read_text(encoding="utf-8", errors="replace"):
        with atomic_write(path) as file:
            file.write(kept)


def _entries(path: Path) -> Iterator[tuple[dict, str]]:
    """What the complete lines of a metrics.json hold, and the lines."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the run was killed while writing this line
        if line.endswith("\n") and isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
            yield entry, line


def keep_earlier_metrics(output_dir: str) -> None:
    """Rename the metrics.json of an earlier run in this folder, to make way for a new one."""
    path = Path(output_dir, "metrics.json")
    if path.exists() and path.stat().st_size:
        number = 1
        while (earlier := path.with_name(f"metrics_earlier_{number}.json")).exists():
            number += 1
        path.rename(earlier)
        logger.info("metrics.json of an earlier run is now %s", earlier)


def peak_memory_mib() -> float:
    """Peak GPU memory held by tensors so far, in MiB; without a GPU, peak memory of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"[{self.formatTime(record, '%m/%d %H:%M:%S')} {record.name.split('.')[0]}]"
        level = f" {record.levelname}" if record.levelno >= logging.WARNING else ""
        # Names of classes and files come from data, reasons from servers: none may give orders to a terminal.
        return printable(f"{text}{level}: {super().format(record)}", lines=True)


class _Console(logging.StreamHandler):
    """Standard output. In a terminal, a bar stays below the lines and takes the place of those that tell the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        # Where standard output was closed, the lines are logging's to fail with, which does not end the run.
        if getattr(record, PROGRESS, False) and not self.stream.closed and self.stream.isatty() and sys.stderr.isatty():
            return
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


class _LogFile(logging.FileHandler):
    def _open(self) -> IO:
        return open_unlinked(self.baseFilename, self.mode)


def setup_logging(output_dir: str | None, rank: int = 0) -> None:
    """Send the log of the package and of fvcore to standard output and, on the main process, to `output_dir`/log.txt.

    Other processes show only errors.
    """
    handlers: list[logging.Handler] = [_Console(sys.stdout)]
    if output_dir is not None and rank == 0:
        handlers.append(_LogFile(os.path.join(output_dir, "log.txt"), encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(_Formatter())
    for name in ("resnest_det", "fvcore"):
        log = logging.getLogger(name)
        for old in list(log.handlers):
            log.removeHandler(old)
            old.close()
        log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
        for handler in handlers:
            log.addHandler(handler)
