"""Runs on two machines, each a session of processes: one vanishes and comes back, and the network between them loses packets."""

import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.runs import ITERATIONS, PATIENCE, Run, Training, kill, processes_of, wait_until_gone

_LOSS = 0.02  # of all packets
_SILENCE = 5.0  # seconds without any
_ABSENCE = 40.0  # seconds; torch takes a machine for gone after 15 to 20
_PORT = 29400
# linux/if_tun.h and linux/sched.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000


def machine_vanishes(training: Training, folder: Path, numbers: random.Random) -> str:
    """One of two machines loses all its processes: the other one ends with a line, and both go on when they are started again."""
    run = Run(training, folder / "out")
    machines = [_machine(run, "127.0.0.1", rank) for rank in range(2)]
    try:
        run.wait_for(machines[0], numbers.randint(1, ITERATIONS - 4))
        begun = time.monotonic()
        victim, other = numbers.sample(machines, 2)
        kill(victim.pid)
        other.wait(PATIENCE)
        seconds = time.monotonic() - begun
        left = wait_until_gone(other.pid, 60)
        assert other.returncode and not left, f"status {other.returncode}, left {left}:\n{run.output.read_text()}"
    finally:
        for machine in machines:
            kill(machine.pid)
            machine.wait()
    run.check()
    machines = [_machine(run, "127.0.0.1", rank) for rank in range(2)]
    _end(run, machines)
    run.complete()
    return f"the other one ended {seconds:.0f} s later"


def machine_comes_back(training: Training, folder: Path, numbers: random.Random) -> str:
    """Under torchrun, one of two machines loses all its processes and joins again: the other one waits, and both go on."""
    run = Run(training, folder / "out")
    machines = [_machine_of_torchrun(run) for _ in range(2)]
    try:
        run.wait_for(machines[0], numbers.randint(3, ITERATIONS - 4))
        # Whoever holds the port of the rendezvous has to live: torch keeps what the machines agree on in that process.
        host = _who_listens(_PORT)
        victim, other = machines if host in processes_of(machines[1].pid) else machines[::-1]
        _kill_machine(victim)
        time.sleep(_ABSENCE)
        run.check()
        assert other.poll() is None, run.output.read_text()
        machines = [other, _machine_of_torchrun(run)]
        _end(run, machines)
    finally:
        for machine in machines:
            _kill_machine(machine)
    run.check()
    run.complete()
    return f"back after {_ABSENCE:.0f} s"


def lossy_network(training: Training, folder: Path, numbers: random.Random) -> str:
    """Two machines whose network loses packets at random, and for some seconds all of them; see `can_make_networks`."""
    run = Run(training, folder / "out")
    with network(numbers) as (names, address, traffic):
        machines = [_machine(run, address, rank, prefix=("ip", "netns", "exec", name)) for rank, name in enumerate(names)]
        try:
            run.wait_for(machines[0], 5)
            traffic.silent_until = time.monotonic() + _SILENCE
            _end(run, machines)
        finally:
            for machine in machines:
                kill(machine.pid)
        lost = f"{traffic.lost} of {traffic.packets} packets were lost"
    run.check()
    run.complete()
    return lost


def _machine(run: Run, address: str, rank: int, prefix: Sequence[str] = ()) -> subprocess.Popen:
    flags = ["--num-processes", "1", "--num-machines", "2", "--machine-rank", str(rank), "--dist-url", f"tcp://{address}:{_PORT}"]
    return run.start(flags=flags, prefix=prefix, env={"GLOO_SOCKET_IFNAME": "tun0" if prefix else "lo"})


def _machine_of_torchrun(run: Run) -> subprocess.Popen:
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{_PORT}", "--rdzv-id", "faults"]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", *rendezvous]
    # With a store that machines share, as is the default, torch does not tell the address of the first one again.
    return run.start(flags=[], launcher=torchrun, env={"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})


def _kill_machine(torchrun: subprocess.Popen) -> None:
    """Kill the launcher and its processes, each of which torchrun starts in a session of its own."""
    sessions = {torchrun.pid}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(parent) == torchrun.pid:
                sessions.add(int(session))
    for session in sessions:
        kill(session)


def _who_listens(port: int) -> int:
    """The process that has a socket which listens on that port."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    [inode] = {line[9] for line in lines if line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port}
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(handle) == f"socket:[{inode}]":
                return int(handle.parts[2])
    raise AssertionError(f"nobody listens on port {port}")


def _end(run: Run, machines: Sequence[subprocess.Popen]) -> None:
    """Wait for the end of both machines' commands."""
    for machine in machines:
        machine.wait(PATIENCE)
    for machine in machines:
        left = wait_until_gone(machine.pid, 60)
        assert machine.returncode == 0 and not left, f"status {machine.returncode}, left {left}:\n{run.output.read_text()}"


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
def network(numbers: random.Random) -> Iterator[tuple[list[str], str, _Traffic]]:
    """Names of two network namespaces, the address of the first, and the traffic between them."""
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
            yield [name for name, _ in machines], machines[0][1], traffic
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
