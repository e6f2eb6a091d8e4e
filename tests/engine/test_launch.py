"""Many processes: results of one, a process that dies, addresses that do not work."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn

from resnest_det.distributed import all_gather_objects, get_rank
from resnest_det.engine import launch as launch_module
from resnest_det.engine.launch import claim_gpu, join_process_group, launch
from resnest_det.errors import UserError

CPU = torch.device("cpu")


def _together(folder):
    # Here, since every process that is started imports this module, and the others need little of it.
    from resnest_det.engine.loop import check_finite, reduce_losses

    join_process_group(CPU)
    _sync_batch_norm()
    rank = get_rank()
    losses = {"loss_cls": torch.tensor(1.0 + rank), "loss_mask": torch.tensor(0.5)}
    (folder / str(rank)).write_text(repr(all_gather_objects(reduce_losses(losses, data_time=float(rank)))))
    losses, _ = reduce_losses({"loss_cls": torch.tensor(float("nan") if rank else 1.0)}, 0.0)
    check_finite(losses, [f"{rank}.jpg"], 8)


def _sync_batch_norm():
    from resnest_det.backbone.layers import get_norm

    rank = get_rank()
    torch.manual_seed(0)
    x, weights = torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    reference, sync = nn.BatchNorm2d(3).double(), get_norm("SyncBN", 3).double()
    whole, part = x.clone().requires_grad_(), x[rank::2].clone().requires_grad_()
    expected, output = reference(whole), sync(part)
    (expected * weights).sum().backward()
    (output * weights[rank::2]).sum().backward()
    dist.all_reduce(sync.weight.grad)
    assert torch.allclose(output, expected[rank::2], atol=1e-12)
    assert torch.allclose(part.grad, whole.grad[rank::2], atol=1e-12)
    assert torch.allclose(sync.weight.grad, reference.weight.grad, atol=1e-12)
    assert torch.allclose(sync.running_mean, reference.running_mean) and torch.allclose(sync.running_var, reference.running_var)


@pytest.mark.slow
def test_two_processes_work_as_one(tmp_path, capfd):
    message = "^loss is not finite at iteration 8: loss_cls nan; images of this step: 0.jpg, 1.jpg; [^\n]*$"
    with pytest.raises(UserError, match=message):
        launch(_together, tmp_path, num_processes=2)
    # Averages of losses, the longest wait for data, the same on both.
    expected = repr([({"loss_cls": 1.5, "loss_mask": 0.5}, 1.0)] * 2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == [expected, expected]
    assert "Traceback" not in capfd.readouterr().err


def _one_dies(folder):
    join_process_group(CPU)
    if get_rank() == 1:
        (folder / "time_of_death").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    time.sleep(1000)


@pytest.mark.slow
def test_a_killed_process_stops_the_others_within_seconds(tmp_path):
    with pytest.raises(UserError, match=r"process 1 \(pid \d+\) was killed by SIGKILL .*resuming"):
        launch(_one_dies, tmp_path, num_processes=2)
    assert time.time() - float((tmp_path / "time_of_death").read_text()) < 20


def _bug():
    raise KeyError("a mistake in the program")


JOINING = """
import torch
from resnest_det.engine.launch import join_process_group
from resnest_det.stopping import handle_signals
handle_signals()
print("joining", flush=True)
join_process_group(torch.device("cpu"))
"""


def test_a_signal_ends_a_process_that_waits_for_the_others():
    """Such as that which the system sends when the launcher has died."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(nobody.getsockname()[1])}
        place = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0"}
        process = subprocess.Popen(
            [sys.executable, "-c", JOINING], env=os.environ | address | place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert process.stdout.readline() == b"joining\n"
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == -signal.SIGINT
        finally:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="(?s)process [01] failed:.*in _bug.*a mistake in the program"):
        launch(_bug, num_processes=2)


def _fails_and_is_aborted_on_its_way_out():
    atexit.register(os.abort)
    raise UserError("the reason")


@pytest.mark.slow
def test_a_reason_is_told_though_the_process_is_aborted_after_it():
    with pytest.raises(UserError, match="^the reason$"):
        launch(_fails_and_is_aborted_on_its_way_out, num_processes=2)


def test_one_process_runs_here():
    seen = []
    launch(seen.append, os.getpid())
    assert seen == [os.getpid()] and get_rank() == 0


def test_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"dist_url {url}: machine 0 cannot listen there: Address already in use"):
            launch(_bug, num_processes=2, dist_url=url)


def test_machine_0_that_does_not_answer(monkeypatch, capfd):
    monkeypatch.setattr(launch_module, "RENDEZVOUS_TIMEOUT", 1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UserError, match=f"dist_url {url}: machine 0 has not answered there for 1 s: Connection refused"):
        launch(_bug, num_machines=2, machine_rank=1, dist_url=url)
    assert capfd.readouterr().err == f"waiting up to 1 s for machine 0 at {url} (Connection refused)\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_processes=0), "number of processes is 0"),
        (dict(num_machines=2), "dist_url auto works on one machine only"),
        (dict(num_machines=2, machine_rank=2), "machine_rank 2: it must be from 0"),
        (dict(num_machines=0), "num_machines 0"),
        (dict(num_processes=2, dist_url="localhost:29500"), "expected tcp://HOST:PORT"),
        (dict(num_processes=2, dist_url="tcp://localhost"), "expected tcp://HOST:PORT"),
        (dict(num_processes=2, dist_url="tcp://no.such.host.invalid:29500"), "host no.such.host.invalid is unknown"),
    ],
)
def test_wrong_numbers_and_addresses(arguments, message):
    with pytest.raises(UserError, match=message):
        launch(_bug, **arguments)


def test_a_gpu_that_is_not_there():
    claim_gpu(CPU)
    with pytest.raises(UserError, match="GPU 99 was asked for, but this machine has"):
        claim_gpu(torch.device("cuda:99"))


def test_processes_of_an_attempt_agree_on_its_name_beside_what_earlier_ones_left():
    store, names = dist.HashStore(), []
    for attempt in range(3):
        # The last process of the attempt before asked, and died before it was answered.
        store.set("asks/2", f"dead{attempt}")
        with ThreadPoolExecutor(3) as pool:
            names.append(set(pool.map(lambda rank: launch_module._name_of_attempt(store, rank, 3), (1, 0, 2))))
    assert all(len(each) == 1 for each in names) and len(set.union(*names)) == 3
