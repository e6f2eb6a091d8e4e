"""Starting a function on many processes with torch.distributed's elastic launcher, and what each process sets up."""

import datetime
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable

import torch
import torch.distributed as dist

from resnest_det.errors import ArgumentError, UserError, out_of_memory
from resnest_det.stopping import Terminated, at_once, end_interrupted, handle_signals

RENDEZVOUS_TIMEOUT = 300  # seconds to wait for the other machines
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)  # one process evaluates while the others wait


def launch(
    function: Callable,
    *args: object,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Run `function(*args)` on `num_processes` processes of each of `num_machines` machines.

    If there is only one process in all, or `torchrun` has already started them, `function` is called in this process.

    Args:
        function: importable by name, with arguments that can be pickled; calls `join_process_group` first.
        dist_url: tcp://HOST:PORT of machine 0, or "auto" on one machine.

    Raises:
        KeyboardInterrupt: a signal came, here or to one of the processes; `Terminated` if it was not Ctrl-C.
        UserError: wrong arguments, a port in use, machine 0 out of reach, a process that was killed, or bad input that a
            process found.
        RuntimeError: a process failed in another way; the message has its traceback.
    """
    _check_numbers(num_processes, num_machines, machine_rank)
    if dist.is_torchelastic_launched() or num_processes * num_machines == 1:
        function(*args)
        return
    # Slow to import, and not needed by a single process.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    rendezvous = _rendezvous(num_machines, machine_rank, dist_url)
    config = LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=num_processes,
        run_id="resnest_det",
        max_restarts=0,
        **rendezvous,
    )
    # The launcher reports a failed process on a page; `_failure` needs a line, and so does a signal.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # each has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, _worker)(function, *args)
    except ChildFailedError as error:
        raise _failure(error) from None
    except SignalException as error:
        raise (KeyboardInterrupt if error.sigval == signal.SIGINT else Terminated) from None
    except (RendezvousError, dist.DistError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            "dist_url", f"{dist_url}: machine {machine_rank} of {num_machines} could not join: {reason}"
        ) from error


def _check_numbers(num_processes: int, num_machines: int, machine_rank: int) -> None:
    if num_processes < 1:
        raise UserError(f"the number of processes is {num_processes}; at least 1 is needed")
    if num_machines < 1:
        raise ArgumentError("num_machines", f"{num_machines}: at least 1 is needed")
    if not 0 <= machine_rank < num_machines:
        raise ArgumentError(
            "machine_rank", f"{machine_rank}: it must be from 0 to {num_machines - 1}, one less than the machines"
        )


def _rendezvous(num_machines: int, machine_rank: int, dist_url: str) -> dict:
    if dist_url == "auto":
        if num_machines > 1:
            raise ArgumentError("dist_url", "auto works on one machine only; give every machine tcp://HOST:PORT of machine 0")
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    host, _, port = dist_url.removeprefix("tcp://").rpartition(":")
    if not dist_url.startswith("tcp://") or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ArgumentError("dist_url", f"{dist_url}: expected tcp://HOST:PORT")
    try:
        address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ArgumentError("dist_url", f"{dist_url}: the host {host} is unknown: {error.strerror}") from None
    if machine_rank == 0:
        _check_port(address, dist_url)
    else:
        _wait_for_machine_0(address, dist_url)
    configs = {"rank": machine_rank, "timeout": RENDEZVOUS_TIMEOUT}
    return {"rdzv_backend": "static", "rdzv_endpoint": f"{host}:{port}", "rdzv_configs": configs}


def _check_port(address: tuple, dist_url: str) -> None:
    family, kind, protocol, _, where = address
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ArgumentError("dist_url", f"{dist_url}: machine 0 cannot listen there: {reason}; choose another port") from None


def _wait_for_machine_0(address: tuple, dist_url: str) -> None:
    # The launcher would wait on its own, but prints pages of log and never says for what.
    family, kind, protocol, _, where = address
    give_up, told = time.monotonic() + RENDEZVOUS_TIMEOUT, False
    while True:
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(max(1, give_up - time.monotonic()))
            try:
                return probe.connect(where)
            except OSError as error:
                reason = error.strerror or str(error)
        if time.monotonic() >= give_up:
            raise ArgumentError(
                "dist_url",
                f"{dist_url}: machine 0 has not answered there for {RENDEZVOUS_TIMEOUT} s: {reason}; is it "
                "started with this address, and is the port open to this machine?",
            )
        if not told:
            print(f"waiting up to {RENDEZVOUS_TIMEOUT} s for machine 0 at {dist_url} ({reason})", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.5)


def _worker(function: Callable, *args: object) -> None:
    """Run `function` in a started process."""
    handle_signals()
    try:
        function(*args)
    except KeyboardInterrupt as stop:
        end_interrupted(stop, say=False)
    except OSError as error:
        raise UserError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if told := out_of_memory(error):
            raise told from error
        # When a process dies, the others lose their connections within milliseconds. By waiting they let the launcher
        # see the dead one first and name it as the cause.
        time.sleep(2)
        raise


def _failure(error) -> BaseException:
    rank, failure = error.get_first_failure()
    if failure.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return KeyboardInterrupt() if failure.exitcode == 128 + signal.SIGINT else Terminated()
    # A process's own message comes first: torch's threads can still abort a process that is exiting after a failure.
    if isinstance(failure.message, dict):
        text = failure.message.get("message", "")
        if text.startswith(f"{UserError.__name__}: "):
            return UserError(text.partition(": ")[2])
        return RuntimeError(f"process {rank} failed:\n{failure.message.get('extraInfo', {}).get('py_callstack', text)}")
    if failure.exitcode < 0:
        out_of_memory = " (out of memory is the usual reason)" if failure.exitcode == -signal.SIGKILL else ""
        return UserError(
            f"process {rank} (pid {failure.pid}) was killed by {failure.signal_name()}{out_of_memory}, so the run was stopped; "
            "resuming it goes on from the last checkpoint"
        )
    return RuntimeError(f"process {rank} (pid {failure.pid}) ended with status {failure.exitcode}")


def claim_gpu(device: torch.device) -> None:
    """Make `device` the current GPU of this process; without an index, each process takes its own.

    Raises:
        UserError: there are fewer GPUs than processes, or several processes would use one GPU.
    """
    if device.type != "cuda":
        return
    if device.index is not None and dist.is_torchelastic_launched():
        raise UserError(f"the device is {device}, but each of several processes takes a GPU of its own; use cuda")
    chosen = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if chosen >= torch.cuda.device_count():
        raise UserError(f"GPU {chosen} was asked for, but this machine has {torch.cuda.device_count()} (numbered from 0)")
    torch.cuda.set_device(chosen)


def join_process_group(device: torch.device) -> None:
    """Join the processes that `launch` or `torchrun` has started; do nothing if there is only one."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return
    with at_once():
        # When the launcher dies, the system sends its processes SIGINT, but not those that had not asked for it yet.
        launcher = multiprocessing.parent_process()
        if launcher is not None and not launcher.is_alive():
            sys.exit("the process that started this one has ended")
        store, rank, world_size = next(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
        store = dist.PrefixStore(_name_of_attempt(store, rank, world_size), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)


def _name_of_attempt(store: dist.Store, rank: int, world_size: int) -> str:
    """A name that all processes of this attempt agree on, and that no earlier one had.

    The launcher's store survives a restart of the processes, with the addresses of those that died. How often they were started
    does not tell attempts apart: a machine that comes back counts from zero.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", own)
        name = store.get(f"named/{own}").decode()
        store.set(f"{name}/{rank}", "here")
        return name
    # What is asked may be left of an earlier attempt; nobody of it is here.
    waiting, end = set(range(1, world_size)), time.monotonic() + COLLECTIVE_TIMEOUT.total_seconds()
    while waiting:
        if time.monotonic() > end:
            raise dist.DistStoreError(f"processes {sorted(waiting)} did not join in {COLLECTIVE_TIMEOUT}")
        for other in sorted(waiting):
            if store.check([f"asks/{other}"]):
                store.set(f"named/{store.get(f'asks/{other}').decode()}", own)
            if store.check([f"{own}/{other}"]):
                waiting.remove(other)
        time.sleep(0.01)
    return own


def leave_process_group(device: torch.device) -> None:
    """What `join_process_group` did is undone, if it did something."""
    if dist.is_initialized():
        # While the group is destroyed, the interpreter is held, and gloo's threads may still need it to free what they sent:
        # torch 2.6 then waits for ever. This part of it lets them have it, and is destroyed last.
        backend = dist.group.WORLD._get_backend(device)
        dist.destroy_process_group()
        del backend


def share_cpu_threads() -> None:
    """Divide the machine's cores among its processes.

    If OMP_NUM_THREADS is set, it decides instead.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
