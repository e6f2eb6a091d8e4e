"""Faults of the machine around a run: of its disk, its memory, its clock, its processes and its files."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.machines import can_make_networks, lossy_network, machine_comes_back, machine_vanishes
from tests.faults.runs import ITERATIONS, PATIENCE, Run, Training, ends_in_one_line, processes_of, wait_until_gone
from tests.helpers.commands import ROOT

INSIDE = f"{ROOT}:{Path(__file__).parent / 'inside'}"


def full_disk(training: Training, folder: Path, numbers: random.Random) -> str:
    """No file can grow beyond some size."""
    size = (training.folder / "out" / "model_final.pth").stat().st_size
    # Less than a checkpoint has, so that one fails; sometimes not even a line of the log has room.
    limit = int(size * numbers.choice((numbers.uniform(0.3, 0.99), 10 ** numbers.uniform(-4, -1))))
    run = Run(training, folder / "out")
    text = run.end(run.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))), 2)
    error = ends_in_one_line(text)
    run.check()
    run.complete()
    return f"{limit} bytes: {error}"


def full_file_system(training: Training, folder: Path, numbers: random.Random) -> str:
    """A file system of its own fills, at some moment, and is then emptied of what fills it."""
    out = folder / "small"
    out.mkdir()
    size = (training.folder / "out" / "model_final.pth").stat().st_size
    # A whole run has ten checkpoints.
    with mounted(out, int(size * numbers.uniform(0.2, 9))):
        run = Run(training, out / "out")
        error = ends_in_one_line(run.end(run.start(), 2))
        run.check()
        subprocess.run(["mount", "-o", f"remount,size={size * 20}", str(out)], check=True)
        run.complete()
    return error


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes on `folder`; see `can_mount`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this user may mount file systems."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def failing_write(training: Training, folder: Path, numbers: random.Random) -> str:
    """One call that writes fails; those after it do not."""
    # Some of the writes are to log.txt, of which logging itself tells: the run goes on.
    fault = numbers.choice(("write", "sync", "replace"))
    fault += f":{numbers.randint(1, {'write': 200, 'sync': 25, 'replace': 25}[fault])}"
    run = Run(training, folder / "out")
    process = run.start(env={"FAULT": fault, "PYTHONPATH": INSIDE})
    process.wait(PATIENCE)
    text = run.end(process, process.returncode)
    assert process.returncode in (0, 2), text
    error = ends_in_one_line(text) if process.returncode else "no error"
    run.check()
    run.complete()
    return f"{fault}: {error}"


def clock_set_back(training: Training, folder: Path, numbers: random.Random) -> str:
    """The clock goes back by a day in the midst of a run, and what is in the folder seems to come from the future."""
    run = Run(training, folder / "out")
    fault = f"clock:{numbers.randint(1, 3000)}"
    run.end(run.start(env={"FAULT": fault, "PYTHONPATH": INSIDE}, keys=("SOLVER.MAX_ITER", "13")))
    future = time.time() + 1e7
    for path in run.out.rglob("*"):
        os.utime(path, (future, future))
    (run.out / "model_final.pth").unlink()
    (run.out / "last_checkpoint").write_text("model_0000011.pth")
    run.complete(env={"FAULT": fault, "PYTHONPATH": INSIDE})
    return fault


def killed_data_worker(training: Training, folder: Path, numbers: random.Random) -> str:
    """A process that reads images is killed."""
    run = Run(training, folder / "out")
    process = run.start()
    run.wait_for(process, numbers.randint(0, ITERATIONS - 4))
    workers = [pid for pid in processes_of(process.pid) if pid != process.pid]
    os.kill(numbers.choice(workers), signal.SIGKILL)
    error = ends_in_one_line(run.end(process, 2))
    assert "DATALOADER.NUM_WORKERS" in error, error
    run.check()
    run.complete()
    return error


def stopped(training: Training, folder: Path, numbers: random.Random) -> str:
    """A process does not answer for seconds, then goes on; the same again, and meanwhile the run is told to end."""
    run = Run(training, folder / "out")
    process = run.start()
    run.wait_for(process, numbers.randint(0, 4))
    victim = numbers.choice(processes_of(process.pid))
    os.kill(victim, signal.SIGSTOP)
    time.sleep(numbers.uniform(0, 6))
    os.kill(victim, signal.SIGCONT)
    run.wait_for(process, 6)
    victim = numbers.choice([pid for pid in processes_of(process.pid) if pid != process.pid])
    os.kill(victim, signal.SIGSTOP)
    time.sleep(1)
    begun = time.monotonic()
    process.terminate()
    process.wait(PATIENCE)
    # The launcher waits for a process that may be writing a checkpoint.
    assert time.monotonic() - begun < 40, time.monotonic() - begun
    text = run.end(process, 143)
    assert text.rstrip().splitlines()[-1] == "terminated", text
    run.check()
    run.complete()
    return f"ended after {time.monotonic() - begun:.1f} s"


def little_memory(training: Training, folder: Path, numbers: random.Random) -> str:
    """Less memory can be had than the run needs."""
    run = Run(training, folder / "out")
    process = run.start()
    run.wait_for(process, 1)
    # What it needs is known from a run that got it; the limit is below that, and above what importing takes.
    addresses = max(_addresses(pid) for pid in processes_of(process.pid))
    process.terminate()
    run.end(process, 143)
    limit = int(addresses - numbers.uniform(10, 500) * 2**20)
    process = run.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    process.wait(PATIENCE)
    text = run.end(process, process.returncode)
    assert process.returncode in (0, 2), text
    error = ends_in_one_line(text) if process.returncode else "no error"
    run.check()
    run.complete()
    return f"{(addresses - limit) >> 20} MiB too few: {error}"


def _addresses(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def two_at_once(training: Training, folder: Path, numbers: random.Random) -> str:
    """Two runs are begun in one folder at the same time: one works, the other is told."""
    run = Run(training, folder / "out")
    first, second = run.start(), run.start()
    statuses = sorted((first.wait(PATIENCE), second.wait(PATIENCE)))
    text = run.output.read_text()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert statuses == [0, 2] and len(errors) == 1 and "another run is going on" in errors[0], text
    assert not wait_until_gone(first.pid, 5) and not wait_until_gone(second.pid, 5)
    run.check()
    run.complete()
    return errors[0]


def output_gone(training: Training, folder: Path, numbers: random.Random) -> str:
    """OUTPUT_DIR is deleted, or moved, under a run."""
    run = Run(training, folder / "out")
    process = run.start()
    run.wait_for(process, numbers.randint(1, ITERATIONS - 4))
    aside = folder / "aside"
    moved = numbers.random() < 0.5
    run.out.rename(aside)
    if not moved:
        shutil.rmtree(aside)
    error = ends_in_one_line(run.end(process, 2))
    shutil.rmtree(run.out, ignore_errors=True)
    if moved:
        (aside / "run.lock").unlink(missing_ok=True)
        aside.rename(run.out)
        run.check()
    run.complete()
    return error


def images_gone(training: Training, folder: Path, numbers: random.Random) -> str:
    """The images are not there any more, and then again."""
    run = Run(training, folder / "out")
    process = run.start()
    run.wait_for(process, numbers.randint(0, 4))
    images, aside = training.folder / "images", training.folder / "aside"
    images.rename(aside)
    try:
        error = ends_in_one_line(run.end(process, 2))
    finally:
        aside.rename(images)
    assert ".png" in error, error
    run.check()
    run.complete()
    return error


# The last three are of runs on two machines, each with one process.
FAULTS: dict[str, Callable[[Training, Path, random.Random], str]] = {
    function.__name__: function
    for function in (
        full_disk,
        full_file_system,
        failing_write,
        clock_set_back,
        killed_data_worker,
        stopped,
        little_memory,
        two_at_once,
        output_gone,
        images_gone,
        machine_vanishes,
        machine_comes_back,
        lossy_network,
    )
}


def possible(processes: int) -> list[str]:
    """Names of the faults that this user can bring about on runs of that many processes."""
    impossible = {"full_file_system"} if not can_mount() else set()
    if processes != 2:
        impossible |= {"machine_vanishes", "machine_comes_back", "lossy_network"}
    elif not can_make_networks():
        impossible.add("lossy_network")
    return [name for name in FAULTS if name not in impossible]


def faults(training: Training, folder: Path, names: list[str], count: int, seed: int = 0) -> dict[str, int]:
    """Each of `names` `count` times.

    Returns:
        how often each was survived; what was seen is printed.

    Raises:
        AssertionError: with the name and number of the fault.
    """
    found = dict.fromkeys(names, 0)
    for number in range(count):
        for name in names:
            place = folder / f"{name}{number}"
            place.mkdir()
            try:
                seen = FAULTS[name](training, place, random.Random(f"{name} {seed} {number}"))
            except AssertionError as error:
                raise AssertionError(f"{name} {number}, seed {seed}: {error}") from error
            print(f"{name} {number}: {seen}", flush=True)
            found[name] += 1
            shutil.rmtree(place)
    return found
