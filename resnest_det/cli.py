"""How every command-line tool ends: bad input in one line and status 2, a traceback only with `--debug`."""

import ctypes
import os
import sys
from collections.abc import Callable

from resnest_det.errors import UserError

# Compute threads that spin for long while they wait take the cores from data workers and other processes: on a busy machine
# steps get many times slower. Those that never spin cost a tenth of a step on an idle one. Read when torch is first
# imported, so tools import this module before it.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that it frees; elsewhere nothing.

    Otherwise every activation map goes back to the system and comes again page by page: a tenth of a training step on CPUs.
    """
    threshold_of_mmap, threshold_of_trim = -3, -1  # names of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(threshold_of_mmap, 2**30)
    mallopt(threshold_of_trim, 2**31 - 1)


def run_tool(main: Callable[[list[str]], object]) -> None:
    """Run `main(arguments)` and leave the process with a status that says how it went.

    `UserError` and `OSError` (a full disk, a folder that cannot be written) become one line `error: ...` on
    standard error and status 2; Ctrl-C becomes status 130. With `--debug` among the arguments, which is taken
    out before `main` sees them, the traceback is shown instead.
    """
    keep_freed_memory()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        main(arguments)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
