"""Runs on two machines, each a session of processes: one vanishes and comes back, and the network between them loses packets."""

import contextlib
import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.runs import ITERATIONS, PATIENCE, Run, Training, kill, processes_of

_LOSS = 0.02  # of all packets
_SILENCE = 5.0  # seconds without any
_PORT = 29400
# Seconds after which torchrun's list has not a machine any more that does not say that it lives. One that is back earlier is
# waited for in vain, beside its earlier self.
_FORGOTTEN = 20.0
# linux/if_tun.h and linux/sched.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000


def machine_vanishes(training: Training, folder: Path, numbers: random.Random) -> str:
    """One of two machines loses all its processes and is started again; torchrun lets both go on from the last checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    run = Run(training, folder / "out")
    first = _machine(run, address, "127.0.0.1")
    time.sleep(2)  # who comes first keeps the list of the others
    second = _machine(run, address, "127.0.0.1")
    try:
        run.wait_for(first, numbers.randint(1, ITERATIONS - 4))
        kill(second.pid)
        second.wait()
        begun = time.monotonic()
        time.sleep(numbers.uniform(_FORGOTTEN, _FORGOTTEN + 10))
        second = _machine(run, address, "127.0.0.1")
        _end(run, first, second)
    finally:
        kill(first.pid)
        kill(second.pid)
    run.check()
    run.complete()
    return f"complete {time.monotonic() - begun:.0f} s after it vanished"


def lossy_network(training: Training, folder: Path, numbers: random.Random) -> str:
    """Two machines whose network loses packets at random, and for some seconds all of them; see `can_make_networks`."""
    run = Run(training, folder / "out")
    with network(numbers) as (machines, traffic):
        address = f"{machines[0][1]}:{_PORT}"
        processes = []
        try:
            for name, own in machines:
                processes.append(_machine(run, address, own, prefix=("ip", "netns", "exec", name)))
            run.wait_for(processes[0], 5)
            traffic.silent_until = time.monotonic() + _SILENCE
            _end(run, *processes)
        finally:
            for process in processes:
                kill(process.pid)
        lost = f"{traffic.lost} of {traffic.packets} packets were lost"
    run.check()
    run.complete()
    return lost


def _machine(run: Run, address: str, own: str, prefix: Sequence[str] = ()) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", "it"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", address, "--local-addr", own]
    environment = {"GLOO_SOCKET_IFNAME": "tun0"} if prefix else {"GLOO_SOCKET_IFNAME": "lo"}
    return run.start(flags=(), launcher=torchrun, prefix=prefix, env=environment)


def _end(run: Run, *processes: subprocess.Popen) -> None:
    """Wait for the end of both machines' commands."""
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended within {PATIENCE} s:\n{run.output.read_text()}") from None
    for process in processes:
        left = processes_of(process.pid)
        assert process.returncode == 0 and not left, f"status {process.returncode}, left {left}:\n{run.output.read_text()}"


class _Traffic:
    """Carries the packets between two interfaces, but for those that get lost."""

    def __init__(self, interfaces: tuple[int, int], numbers: random.Random):
        self.packets = self.lost = 0
        self.silent_until = 0.0
        self._interfaces, self._numbers, self._over = interfaces, numbers, False
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        to = dict(zip(self._interfaces, reversed(self._interfaces)))
        while not self._over:
            for interface in select.select(self._interfaces, (), (), 0.1)[0]:
                packet = os.read(interface, 65536)
                self.packets += 1
                if self._numbers.random() < _LOSS or time.monotonic() < self.silent_until:
                    self.lost += 1
                else:
                    with contextlib.suppress(OSError):  # the other one is not up yet
                        os.write(to[interface], packet)

    def stop(self) -> None:
        self._over = True
        self._thread.join()


@contextlib.contextmanager
def network(numbers: random.Random) -> Iterator[tuple[list[tuple[str, str]], _Traffic]]:
    """Two network namespaces, (name, address) of each, and the traffic between them."""
    machines = [(f"resnest{os.getpid()}{letter}", f"10.77.0.{number}") for number, letter in ((1, "a"), (2, "b"))]
    interfaces = []
    try:
        for name, address in machines:
            subprocess.run(["ip", "netns", "add", name], check=True)
            interfaces.append(_interface(name))
            for words in (f"addr add {address}/24 dev tun0", "link set tun0 up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        traffic = _Traffic((interfaces[0], interfaces[1]), numbers)
        try:
            yield machines, traffic
        finally:
            traffic.stop()
    finally:
        for interface in interfaces:
            os.close(interface)
        for name, _ in machines:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


def _interface(namespace: str) -> int:
    """A new interface tun0 of that namespace: what is sent through it is read here, what is written here is received there."""
    opened: list[int | str] = []

    def work() -> None:  # in a thread, which alone enters the namespace
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/var/run/netns/{namespace}") as place:
            if libc.setns(place.fileno(), _CLONE_NEWNET):
                opened.append(os.strerror(ctypes.get_errno()))
                return
        handle = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH", b"tun0", _IFF_TUN | _IFF_NO_PI))
        opened.append(handle)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not opened or isinstance(opened[0], str):
        raise OSError(f"no interface in {namespace}: {opened}")
    return opened[0]


def can_make_networks() -> bool:
    """Whether this user may make network namespaces and interfaces."""
    if os.geteuid():
        return False
    try:
        with network(random.Random(0)):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
