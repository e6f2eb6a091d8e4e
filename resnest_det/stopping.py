"""How a process ends when it is told to: Ctrl-C (SIGINT) and SIGTERM, whose status is 130 and 143.

Normally a signal raises `KeyboardInterrupt`, or its subclass `Terminated`. Where something must not be torn, as in a step of
training, it is `deferred` to the next place that allows it. A second signal ends the process without waiting for that.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# A launcher passes on a signal that the terminal has sent to every process already: both together are one.
_SAME_SIGNAL = 1.0  # seconds


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


_received: tuple[int, float] | None = None  # the first signal and when it came
_deferring = False
_nothing_to_tidy = False


def handle_signals(*, importing: bool = False) -> None:
    """Let SIGINT and SIGTERM end this process as described above; called from the main thread, otherwise without effect.

    Args:
        importing: nothing has been done yet that would have to be tidied up, so end at once. An exception in the midst of
            imports can be swallowed, or become another one.
    """
    global _received, _nothing_to_tidy
    if threading.current_thread() is not threading.main_thread():
        return
    _received, _nothing_to_tidy = None, importing
    for number in WORDS:
        signal.signal(number, _handle)


def ignore_signals() -> None:
    """For the end of a process, and for helpers whose end its main process decides."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: object) -> None:
    global _received
    now = time.monotonic()
    if _nothing_to_tidy or (_received and now - _received[1] > _SAME_SIGNAL):
        # Not through sys.stderr, which may be in the midst of a line.
        os.write(2, f"{WORDS[signal.Signals(number)]}\n".encode())
        end_children()
        os._exit(128 + number)
    if _received:
        return
    _received = (number, now)
    if not _deferring:
        raise_if_requested()


def raise_if_requested() -> None:
    """Raises `KeyboardInterrupt` or `Terminated` if a signal has come."""
    if _received:
        raise Terminated if _received[0] == signal.SIGTERM else KeyboardInterrupt


def stop_requested() -> bool:
    """Whether a signal has come."""
    return _received is not None


def stop_too() -> None:
    """Stop as if SIGTERM had come, because another process of the run has received a signal; raised where it is allowed."""
    global _received
    if _received is None:
        _received = (signal.SIGTERM, time.monotonic())


@contextmanager
def deferred() -> Iterator[None]:
    """A signal that comes within takes effect at the end of the block, or where `allowed` within it says so."""
    yield from _with(True)


@contextmanager
def allowed(condition: bool = True) -> Iterator[None]:
    """Within `deferred`, if `condition` holds: a signal that has come takes effect now, another at once."""
    yield from _with(_deferring and not condition)


def _with(deferring: bool) -> Iterator[None]:
    global _deferring
    before, _deferring = _deferring, deferring
    try:
        if not deferring:
            raise_if_requested()
        yield
    finally:
        _deferring = before
    if deferring and not before:
        raise_if_requested()


def end_children() -> None:
    """Kill the processes that this one has started with multiprocessing, data workers above all: they hold nothing to save."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take it for a failure
    for child in multiprocessing.active_children():
        child.kill()


def end_interrupted(stop: KeyboardInterrupt, *, say: bool = True) -> None:
    """End this process after `stop` with the status of its signal, and say so in a line on standard error.

    Raises:
        SystemExit: always.
    """
    number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
    end_children()
    atexit.register(ignore_signals)  # of those registered before, none is then interrupted
    if say:
        print(WORDS[number], file=sys.stderr)
    sys.exit(128 + number)
