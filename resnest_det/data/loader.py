"""Loaders: worker processes read images ahead, in an order that does not depend on the workers."""

import itertools
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from resnest_det.data.instance_records import Records, joined
from resnest_det.data.records import Record, Sample
from resnest_det.data.samplers import Draw
from resnest_det.errors import ArgumentError, UserError
from resnest_det.stopping import deferred, raise_if_requested, waiting


class PackedRecords(Sequence):
    """Records pickled into one read-only block of memory.

    Forked workers share the block; they would copy a list of dicts page by page, because counting references writes to it.
    Every access returns a new record.
    """

    def __init__(self, records: Iterable[Record]):
        packed = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0] + [len(record) for record in packed])
        self._block = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return pickle.loads(self._block[self._ends[index] : self._ends[index + 1]])


def in_shared_memory(parts: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """The records of one or more datasets behind each other, in memory that forked workers share."""
    return joined([part if isinstance(part, (Records, PackedRecords)) else PackedRecords(part) for part in parts])


class _TrainingSamples:
    def __init__(self, records: Sequence[Record], make_sample: Callable[[Record, np.random.Generator], Sample], seed: int):
        self._records = records
        self._make_sample = make_sample
        self._seed = seed

    def __getitem__(self, draw: Draw) -> Sample | UserError:
        index, position = draw
        try:
            return self._make_sample(self._records[index], np.random.default_rng([self._seed, position, 1]))
        # Returned as a value: the DataLoader would wrap a raised error in a worker's traceback.
        except UserError as error:
            return error


class _InferenceSamples:
    def __init__(self, records: Sequence[Record], make_sample: Callable[[Record], Sample]):
        self._records = in_shared_memory([records])
        self._make_sample = make_sample

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            return self._make_sample(self._records[index])
        except UserError as error:
            return error


def as_list(samples: list) -> list[Sample] | UserError:
    """The samples, or the first error among them."""
    return next((sample for sample in samples if isinstance(sample, UserError)), samples)


def training_batches(
    records: Sequence[Record],
    make_sample: Callable[[Record, np.random.Generator], Sample],
    global_batches: Iterator[list[Draw]],
    *,
    seed: int,
    start_iteration: int,
    rank: int,
    world_size: int,
    num_workers: int,
    collate: Callable[[list], Any] = as_list,
) -> Iterator[Any]:
    """This process's part, a list of samples, of every global batch from number `start_iteration` on, without end.

    Batch k does not depend on the start or the number of workers: a sample depends only on its record and on (seed,
    position of its draw). Batches before the start are skipped without reading images.

    Args:
        collate: makes a batch, or a `UserError` that is then raised, of a list of samples and of `UserError`s about images. It
            runs where the images are read.

    Raises:
        UserError: whatever `make_sample` found wrong with an image, when its batch is reached.
        ArgumentError: a worker was killed.
    """
    shares = (batch[rank::world_size] for batch in itertools.islice(global_batches, start_iteration, None))
    return _load(_TrainingSamples(records, make_sample, seed), shares, num_workers, collate)


class InferenceBatches:
    """The samples of some images, in order, one per batch unless told otherwise; can be iterated again. `len` counts batches.

    Iterating raises what `training_batches` raises, which says what `collate` is.

    Args:
        chosen: indices of the records to take; None takes all.
    """

    def __init__(
        self,
        records: Sequence[Record],
        make_sample: Callable[[Record], Sample],
        num_workers: int,
        *,
        chosen: Sequence[int] | None = None,
        batch_size: int = 1,
        collate: Callable[[list], Any] = as_list,
    ):
        self._samples = _InferenceSamples(records, make_sample)
        indices = range(len(records)) if chosen is None else chosen
        self._batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
        self._num_workers = min(num_workers, len(self._batches))
        self._collate = collate

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return _load(self._samples, iter(self._batches), self._num_workers, self._collate)


def _load(
    samples: _TrainingSamples | _InferenceSamples, batch_sampler: Iterator, num_workers: int, collate: Callable[[list], Any]
) -> Iterator[Any]:
    loader = DataLoader(
        samples,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collate,
        # From such memory a GPU copies while its host goes on.
        pin_memory=bool(num_workers) and torch.cuda.is_available(),
        # Of its own, because starting workers draws from it, and the run's randomness must not notice.
        generator=torch.Generator(),
        worker_init_fn=_start_worker,
        # In a process that was spawned itself, as the launcher's are, the default is to spawn: seconds for each worker, and the
        # records once more.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
    )
    loaded = iter(loader)
    _deaths.watch()
    while True:
        try:
            # An interrupted transfer would become a worker's traceback.
            with deferred(), waiting(), _deaths.raised() if num_workers else nullcontext():
                batch = next(loaded)
        except StopIteration:
            with deferred():
                del loaded  # ends the workers
            return
        except RuntimeError as error:
            if num_workers and str(error).startswith("DataLoader worker"):
                time.sleep(0.1)
                raise_if_requested()  # the signal that ended the worker may have come to all processes
                raise ArgumentError("num_workers", f"{num_workers}: {_why(str(error))}") from None
            raise
        if isinstance(batch, UserError):
            raise batch
        try:
            yield batch
        except GeneratorExit:
            # Nobody would hear of an error that a generator raises now; a signal is not forgotten.
            with suppress(KeyboardInterrupt), deferred():
                del loaded
            raise


def _start_worker(index: int) -> None:
    # Ctrl-C goes to all processes of a run. The main one may still need a batch, and ends its workers itself, by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Deaths:
    """Deaths of workers, of which torch's handler of SIGCHLD raises an error wherever the main process is at the time.

    They are kept until the next batch is asked of workers instead: in the midst of a step, or of batches that the main process
    reads itself, nobody would know what the error is about.
    """

    def __init__(self):
        self._handler: Callable | None = None  # torch's
        self._wanted = False
        self._error: RuntimeError | None = None

    def watch(self) -> None:
        """Take the place of torch's handler, once a loader has set it."""
        handler = signal.getsignal(signal.SIGCHLD)
        if threading.current_thread() is threading.main_thread() and callable(handler) and handler != self._handle:
            self._handler = handler
            signal.signal(signal.SIGCHLD, self._handle)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within, what was kept and what comes is raised."""
        self._wanted = True
        try:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            yield
        finally:
            self._wanted = False

    def _handle(self, number: int, frame: object) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            if self._wanted:
                raise
            self._error = error


_deaths = _Deaths()


def _why(message: str) -> str:
    """What torch says of a worker's death, with the usual reason."""
    try:
        shared = f", or shared memory did (/dev/shm has {shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB free)"
    except OSError:
        shared = ""
    told = message.split(". ")[0].removeprefix("DataLoader worker ").rstrip(". ")
    return (
        f"one of the processes that read images died, {told}; usually memory ran out{shared}: fewer of them need less, "
        "and with 0 the main process reads"
    )
