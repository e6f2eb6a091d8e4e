"""The budget within which a hostile input has to end, and what ended in another way."""

import argparse
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from resnest_det.errors import UserError, printable

SECONDS = 15  # for one input
MEMORY = 2 << 30  # bytes of addresses beyond those of a process that has imported everything
MESSAGE = 1200  # characters of an error


class TooLong(BaseException):
    """`SECONDS` are over; no `Exception`, which the code under test may catch."""


def limit_memory() -> None:
    """Let this process have `MEMORY` more, for good: a bomb becomes a MemoryError."""
    with open("/proc/self/statm") as file:
        addresses = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + MEMORY, addresses + MEMORY))


def problem_of(read: Callable[[], object], result: type) -> str:
    """What is wrong with how `read` ended: "" if it gave a `result`, or `UserError` in one line, without warnings, in time."""

    def over(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read()
        problem = "" if isinstance(found, result) else f"a {type(found).__name__}"
    except UserError as error:
        text = str(error)
        problem = "" if printable(text) == text and len(text) <= MESSAGE else f"{len(text)} characters: {text:.200}"
    except TooLong:
        problem = "no end"
    except BaseException as error:  # a MemoryError, a RecursionError and an exit are findings too
        problem = f"{type(error).__name__}: {error!s:.200}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    seconds = time.perf_counter() - start
    return problem or (f"took {seconds:.0f} s" if seconds > SECONDS else "")


def command(description: str, count_help: str, inputs: int, run: Callable[[int, int, Path], list[str]]) -> None:
    """A long run from the command line, within `MEMORY`: print the problems and how many of the inputs made them.

    Args:
        inputs: how many `run` tries for a count of one.
        run: takes the count, the seed and a folder to write to, and returns the problems.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help=f"{count_help} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    limit_memory()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["RESNEST_DET_CACHE"] = cache
        problems = run(options.count, options.seed, Path(folder))
    for problem in problems:
        print(ascii(problem))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = time.perf_counter() - start
    print(f"{len(problems)} of {options.count * inputs} ended badly; {seconds:.0f} s, at most {peak:.0f} MiB")
    raise SystemExit(bool(problems))
