"""The command that is typed, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start_training(
    *arguments: str,
    engine: str = "builtin",
    tool: str = "train_net",
    launcher: Sequence[str] = (),
    prefix: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen:
    """A training script of tools/ with `arguments`, its outputs in one pipe.

    Args:
        engine: of `train_net`.
        tool: `train_net` or `train_classifier`.
        launcher: arguments of Python that come before the script.
        prefix: a command that executes the one after it.
        options: of `Popen`; `env` is added to this process's.
    """
    chosen = ["--engine", engine] if tool == "train_net" else []
    command = [*prefix, sys.executable, *launcher, str(ROOT / "tools" / f"{tool}.py"), *chosen, *arguments]
    # In a session of its own, so that whatever is left of it can be ended in the end.
    defaults = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(command, **{**defaults, **options}, env=environment)
