"""The command that is typed, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start_training(
    *arguments: str, engine: str = "builtin", launcher: Sequence[str] = (), prefix: Sequence[str] = (), **options: Any
) -> subprocess.Popen:
    """`tools/train_net.py` with `arguments`, its outputs in one pipe.

    Args:
        launcher: arguments of Python that come before the script.
        prefix: a command that executes the one after it.
        options: of `Popen`; `env` is added to this process's.
    """
    command = [*prefix, sys.executable, *launcher, str(ROOT / "tools" / "train_net.py"), "--engine", engine, *arguments]
    # In a session of its own, so that whatever is left of it can be ended in the end.
    defaults = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(command, **{**defaults, **options}, env=environment)
