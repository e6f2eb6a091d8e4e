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
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# A launcher passes on a signal that the terminal has sent to every process already: both together are one.
_SAME_SIGNAL = 1.0  # seconds
_TIDYING = 3.0  # seconds that helpers have to end by themselves
_PATIENCE = 1.0  # seconds that others have to answer once a signal has come


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


_received: tuple[int, float] | None = None  # the first signal and when it came
_deferring = False
_waiting = False
_nothing_to_tidy = False
_status: int | None = None  # of a process that ends after a signal or an error


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
    signal.signal(signal.SIGALRM, _give_up)


def ignore_signals() -> None:
    """For the end of a process."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: object) -> None:
    global _received
    now = time.monotonic()
    if _nothing_to_tidy or (_received and now - _received[1] > _SAME_SIGNAL):
        # Not through sys.stderr, which may be in the midst of a line.
        os.write(2, f"{WORDS[signal.Signals(number)]}\n".encode())
        _end_now(128 + number)
    if _received:
        return
    _received = (number, now)
    if not _deferring:
        raise_if_requested()
    elif _waiting:
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)


def _give_up(number: int, frame: object) -> None:
    if _waiting:
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
def allowed() -> Iterator[None]:
    """Within `deferred`: a signal that has come takes effect now, another at once."""
    yield from _with(False)


@contextmanager
def at_once() -> Iterator[None]:
    """Within, where there is nothing to tidy, the system itself ends the process when a signal comes.

    For calls in which torch waits for other processes, and Python does not hear of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in WORDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def waiting() -> Iterator[None]:
    """Within `deferred`, for another process that may not answer: a signal takes effect after `_PATIENCE` at the latest."""
    global _waiting
    _waiting = True
    try:
        yield
    finally:
        _waiting = False


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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take it for a failure
    for child in multiprocessing.active_children():
        child.kill()


def end_interrupted(stop: KeyboardInterrupt, *, say: bool = True) -> NoReturn:
    """End this process after `stop` with the status of its signal (`SystemExit`), and, to `say` so, a line on standard error."""
    number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
    if say:
        print(WORDS[number], file=sys.stderr, flush=True)
    signal.signal(signal.SIGALRM, lambda *_: _end_now(128 + number))
    signal.setitimer(signal.ITIMER_REAL, _TIDYING)
    # Frees the loaders, which then end their workers.
    traceback.clear_frames(stop.__traceback__)
    end_children()
    signal.setitimer(signal.ITIMER_REAL, 0)
    end(128 + number)


def end(status: int) -> NoReturn:
    """`sys.exit`, with what is registered for the end, but without waiting until the interpreter and torch are taken down."""
    global _status
    _status = status
    sys.exit(status)


def _skip_teardown() -> None:
    # Torch takes half a second to be taken down, on a busy machine ten. What others have to tidy, semaphores above all, is done.
    if _status is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(_status)


# The first to be registered is the last to be called: before whatever torch and multiprocessing register.
atexit.register(_skip_teardown)


def prepare_end() -> None:
    """When this process ends: leave no helper behind, and let no signal interrupt what the interpreter then does."""
    # The last to be registered are the first to be called.
    atexit.register(end_children)
    atexit.register(ignore_signals)


def _end_now(status: int) -> None:
    end_children()
    os._exit(status)
