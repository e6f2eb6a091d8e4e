"""Commands as they are typed, without a process for each: torch takes seconds to load."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from resnest_det import commands


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def ended(capfd, monkeypatch):
    """ended(program, arguments) -> `Done`; `program()` reads `arguments`, its own name first, as those of its process."""
    # A setting of the whole process, which here runs other tests.
    monkeypatch.setattr(commands, "keep_freed_memory", lambda: None)

    def run(program: Callable[[], object], arguments: list[str]) -> Done:
        monkeypatch.setattr(sys, "argv", arguments)
        capfd.readouterr()
        try:
            program()
            status = 0
        except SystemExit as end:
            status = end.code
        return Done(status, *capfd.readouterr())

    return run


@pytest.fixture
def resnest_det_command(ended):
    """resnest_det_command(*words) -> `Done` of `resnest-det WORDS`."""
    return lambda *words: ended(commands.main, ["resnest-det", *map(str, words)])
