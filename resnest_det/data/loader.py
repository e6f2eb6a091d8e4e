"""Loaders: worker processes read images ahead, in an order that does not depend on the workers."""

import itertools
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from resnest_det.data.records import Record, Sample
from resnest_det.data.samplers import Draw
from resnest_det.errors import UserError


class PackedRecords:
    """Records pickled into one read-only block of memory.

    Forked workers share the block; they would copy a list of dicts page by page, because counting references writes to it.
    Every access returns a new record.
    """

    def __init__(self, records: list[Record]):
        packed = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0] + [len(record) for record in packed])
        self._block = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Record:
        return pickle.loads(self._block[self._ends[index] : self._ends[index + 1]])


class _TrainingSamples:
    def __init__(self, records: PackedRecords, make_sample: Callable[[Record, np.random.Generator], Sample], seed: int):
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
    def __init__(self, records: list[Record], make_sample: Callable[[Record], Sample]):
        self._records = PackedRecords(records)
        self._make_sample = make_sample

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            return self._make_sample(self._records[index])
        except UserError as error:
            return error


def training_batches(
    records: PackedRecords,
    make_sample: Callable[[Record, np.random.Generator], Sample],
    global_batches: Iterator[list[Draw]],
    *,
    seed: int,
    start_iteration: int,
    rank: int,
    world_size: int,
    num_workers: int,
) -> Iterator[list[Sample]]:
    """This process's part, a list of samples, of every global batch from number `start_iteration` on, without end.

    Batch k does not depend on the start or the number of workers: a sample depends only on its record and on (seed,
    position of its draw). Batches before the start are skipped without reading images.

    Raises:
        UserError: whatever `make_sample` found wrong with an image, when its batch is reached.
    """
    shares = (batch[rank::world_size] for batch in itertools.islice(global_batches, start_iteration, None))
    return _load(_TrainingSamples(records, make_sample, seed), shares, num_workers)


class InferenceBatches:
    """The samples of some images, in order, one per batch; can be iterated again. `len` is the number of batches.

    Iterating raises UserError as in `training_batches`.
    """

    def __init__(self, records: list[Record], make_sample: Callable[[Record], Sample], num_workers: int):
        self._samples = _InferenceSamples(records, make_sample)
        self._num_workers = min(num_workers, len(records))

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[list[Sample]]:
        return _load(self._samples, ([index] for index in range(len(self))), self._num_workers)


def _load(
    samples: _TrainingSamples | _InferenceSamples, batch_sampler: Iterator[list], num_workers: int
) -> Iterator[list[Sample]]:
    # A generator of its own, because starting workers draws from it, and the run's randomness must not notice.
    loader = DataLoader(
        samples, batch_sampler=batch_sampler, num_workers=num_workers, collate_fn=_as_list, generator=torch.Generator()
    )
    for batch in loader:
        for sample in batch:
            if isinstance(sample, UserError):
                raise sample
        yield batch


def _as_list(samples: list) -> list:
    return samples
