"""One run of the real command that is begun, disturbed and resumed, and what has to hold of its folder after each."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resnest_det.configuration.reading import load_config
from resnest_det.engine.checkpoint import newest_checkpoint
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.commands import start_training
from tests.helpers.tiny_run import losses_of, write_tiny_run

ITERATIONS = 16
# Everything that a run writes, often: losses, checkpoints, evaluations, precise statistics.
KEYS = ("SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.STEPS", "(12,)", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "5")
PATIENCE = 1500.0  # seconds for anything on a busy machine


class Training:
    """A dataset, a configuration, and what a run of it gives that nothing disturbs.

    Args:
        folder: a new one is made for the data, with what the undisturbed run wrote in `out`.
        processes: of one machine.
        keys: further KEY VALUE.
    """

    def __init__(self, folder: Path, processes: int = 1, keys: Sequence[str] = ()):
        folder.mkdir(parents=True)
        self.folder = folder
        self.arguments = write_tiny_run(folder)
        self.flags = ["--num-processes", str(processes)] if processes > 1 else []
        self.keys = [*KEYS, "DATALOADER.NUM_WORKERS", "1", *keys]
        run = Run(self, folder / "out")
        begun = time.monotonic()
        process = run.start()
        run.wait_for(process, 0)
        self.seconds_to_start = time.monotonic() - begun
        run.end(process)
        self.losses = losses_of(run.out)
        self.weights = read_checkpoint(run.out / "model_final.pth")["model"]
        assert len(self.losses) == ITERATIONS


class Run:
    """A run of `training` in the folder `out`, which may be started again and again; what it prints is in `out`.txt."""

    def __init__(self, training: Training, out: Path):
        self.training = training
        self.out = out
        self.output = out.with_name(out.name + ".txt")
        self.output.write_text("")
        self._printed_before = 0

    def start(self, flags: Sequence[str] | None = None, keys: Sequence[str] = (), **options: Any) -> subprocess.Popen:
        """Begin, or go on; `options` as `start_training` has them, `flags` instead of those of the training."""
        self._printed_before = self.output.stat().st_size
        flags = self.training.flags if flags is None else flags
        arguments = [*self.training.arguments, "--resume", *flags, *self.training.keys, "OUTPUT_DIR", str(self.out), *keys]
        options["env"] = {"OMP_NUM_THREADS": "1", **options.get("env", {})}
        with self.output.open("a") as output:
            return start_training(*arguments, stdout=output, **options)

    def printed(self) -> str:
        """What the last start has printed."""
        with self.output.open("rb") as file:
            file.seek(self._printed_before)
            return file.read().decode(errors="replace")

    def wait_for(self, process: subprocess.Popen, iterations: int) -> bool:
        """Wait until that many iterations are done; whether they are, or the process has ended."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            # Until this line is printed, there may be more iterations in the file than are kept.
            if "Training from iteration" in self.printed() and len(self.losses_so_far()) >= iterations:
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.005)
        raise AssertionError(f"{iterations} iterations take more than {PATIENCE} s:\n{self.printed()}")

    def losses_so_far(self) -> dict[int, dict[str, float]]:
        """As `losses_of`, of the whole lines."""
        try:
            lines = (self.out / "metrics.json").read_text().split("\n")[:-1]
        except OSError:
            return {}
        lines = [line for line in map(json.loads, lines) if "total_loss" in line]
        return {line["iteration"]: {key: line[key] for key in line if "loss" in key or key == "lr"} for line in lines}

    def end(self, process: subprocess.Popen, status: int = 0, *, within: float = PATIENCE) -> str:
        """Wait until the command has ended with `status` and nothing of it is left, and return what it has printed."""
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended within {within} s:\n{self.printed()}") from None
        finally:
            left = wait_until_gone(process.pid, 5.0)
            kill(process.pid)
        text = self.printed()
        assert process.returncode == status, f"status {process.returncode}, expected {status}:\n{text}"
        assert not left, f"left behind: {left}\n{text}"
        assert "Traceback" not in text, text
        return text

    def check(self) -> None:
        """Nothing in the folder is half written, and the losses so far are right."""
        expected = self.training.losses
        for iteration, losses in self.losses_so_far().items():
            assert losses == expected[iteration], f"iteration {iteration}: {losses}, expected {expected[iteration]}"
        for path in self.out.glob("*.pth"):
            read_checkpoint(path)
        newest_checkpoint(self.out)
        for path in self.out.glob("inference*/*.json"):
            json.loads(path.read_bytes())
        if (path := self.out / "config.yaml").exists():
            load_config(str(path))

    def complete(self, **options: Any) -> str:
        """Go on to the end, and see that the result is that of an undisturbed run; return what was printed."""
        text = self.end(self.start(**options))
        self.check()
        assert losses_of(self.out) == self.training.losses
        assert (self.out / "last_checkpoint").read_text() == "model_final.pth"
        weights = read_checkpoint(self.out / "model_final.pth")["model"]
        assert weights.keys() == self.training.weights.keys()
        for name, value in self.training.weights.items():
            assert torch.equal(weights[name], value), name
        names = {str(path.relative_to(self.out)) for path in self.out.rglob("*")}
        left = sorted(name for name in names if Path(name).name.startswith(".") or name.endswith(".lock"))
        assert not left, left
        return text


def processes_of(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def wait_until_gone(session: int, seconds: float) -> list[str]:
    """Wait at most that long for the end of a session's processes; the command lines of those that are left."""
    end = time.monotonic() + seconds
    while (left := processes_of(session)) and time.monotonic() < end:
        time.sleep(0.02)
    return [f"{pid}: {command_line(pid)}" for pid in left]


def kill(session: int) -> None:
    """Kill all processes of a session."""
    while left := processes_of(session):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def command_line(pid: int) -> str:
    """The words that a process was started with, the first 200 characters; "?" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "?"


def ends_in_one_line(text: str) -> str:
    """The line of the error that a command has ended with; it has to be the only one."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and text.rstrip().splitlines()[-1] == errors[0], text
    return errors[0]
