"""The command that is typed, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_training(
    *arguments: str, engine: str = "builtin", launcher: Sequence[str] = (), environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """`tools/train_net.py` with `arguments`, its outputs in one pipe; `launcher`: arguments of Python that come before it."""
    command = [sys.executable, *launcher, str(ROOT / "tools" / "train_net.py"), "--engine", engine, *arguments]
    # In a session of its own, so that whatever is left of it can be ended in the end.
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )
