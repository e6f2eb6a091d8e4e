"""Loaders: the same batches whatever the start, the workers and the processes; errors that arrive whole."""

import itertools
import multiprocessing
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch

from resnest_det.data.loader import InferenceBatches, PackedRecords, training_batches
from resnest_det.data.samplers import batches, training_draws
from resnest_det.errors import UserError
from resnest_det.stopping import Terminated, deferred, handle_signals

RECORDS = [{"image_id": n, "values": [n] * n} for n in range(10)]


def make_sample(record, generator):
    return {"image_id": record["image_id"], "drawn": float(generator.random()), "image": torch.full((3,), record["image_id"])}


def failing_sample(record, generator):
    if record["image_id"] == 7:
        raise UserError("image 7.png is damaged")
    return make_sample(record, generator)


def worker_process(record):
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "image_id": record["image_id"]}


def failing_test_sample(record):
    return failing_sample(record, random.Random(0))


def stream(*, sample=make_sample, start=0, rank=0, world_size=1, num_workers=0, seed=5, batch_size=4):
    global_batches = batches(training_draws(np.ones(len(RECORDS)), seed), batch_size, [n % 3 == 0 for n in range(10)])
    return training_batches(
        PackedRecords(RECORDS), sample, global_batches,
        seed=seed, start_iteration=start, rank=rank, world_size=world_size, num_workers=num_workers,
    )  # fmt: skip


def load(count, **how):
    return [[(s["image_id"], s["drawn"]) for s in batch] for batch in itertools.islice(stream(**how), count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_later_gives_the_batches_of_an_uninterrupted_run(num_workers):
    whole = load(12)
    assert len({drawn for batch in whole for _, drawn in batch}) == 48, "every showing is augmented anew"
    assert load(7, start=5, num_workers=num_workers) == whole[5:]
    assert load(12, seed=6) != whole


def test_processes_share_the_global_batch():
    whole = load(6)
    parts = [load(6, rank=rank, world_size=2) for rank in range(2)]
    for batch, even, odd in zip(whole, *parts):
        assert even == batch[::2] and odd == batch[1::2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_input_arrives_as_its_own_one_line_error(num_workers):
    with pytest.raises(UserError) as error:
        load(20, sample=failing_sample, num_workers=num_workers)
    assert str(error.value) == "image 7.png is damaged"
    with pytest.raises(UserError) as error:
        list(InferenceBatches(RECORDS, failing_test_sample, num_workers))
    assert str(error.value) == "image 7.png is damaged"


def test_loading_leaves_the_runs_random_numbers_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    load(3, num_workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_test_images_come_once_in_order_and_again(num_workers):
    loader = InferenceBatches(RECORDS, worker_process, num_workers)
    assert len(loader) == 10
    for _ in range(2):
        loaded = list(loader)
        assert [[sample["image_id"]] for (sample,) in loaded] == [[n] for n in range(10)]
    processes = {sample["pid"] for (sample,) in loaded}
    assert processes == {os.getpid()} if num_workers == 0 else len(processes) == 2 and os.getpid() not in processes
    if num_workers:
        assert {sample["threads"] for (sample,) in loaded} == {1}


def test_packed_records_give_copies():
    packed = PackedRecords(RECORDS)
    assert len(packed) == 10 and [packed[n] for n in range(10)] == RECORDS
    packed[3]["values"].append(99)
    assert packed[3] == RECORDS[3]


def dying_sample(record, generator):
    if record["image_id"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_sample(record, generator)


def test_a_killed_worker_is_one_line_with_the_likely_cause():
    with pytest.raises(UserError, match=r"^num_workers 1: .* died, .*memory ran out.*/dev/shm") as error:
        list(itertools.islice(load(100, sample=dying_sample, num_workers=1), 100))
    assert "\n" not in str(error.value)


def test_a_worker_that_dies_while_the_main_process_reads_is_told_when_workers_are_asked():
    others = set(multiprocessing.active_children())
    read = stream(num_workers=1)
    next(read)
    (worker,) = set(multiprocessing.active_children()) - others
    own = stream(num_workers=0)
    next(own)
    worker.kill()
    worker.join()
    time.sleep(0.1)
    assert len(list(itertools.islice(own, 3))) == 3
    with pytest.raises(UserError, match="^num_workers 1: .* died"):
        list(itertools.islice(read, 10))


def never(record, generator):
    if record["image_id"] == 7:
        time.sleep(1000)
    return make_sample(record, generator)


def test_a_signal_is_not_kept_waiting_by_a_worker_that_does_not_answer():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    handle_signals()
    read = stream(sample=never, num_workers=1)
    try:
        with deferred(), pytest.raises(Terminated):
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            list(read)
    except Terminated:  # and where what was deferred ends
        pass
    finally:
        handle_signals()  # forgets the signal
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for child in multiprocessing.active_children():
            child.kill()
