"""How every command-line tool ends: bad input in one line and status 2, a traceback only with `--debug`."""

import os
import sys
from collections.abc import Callable

from resnest_det.errors import UserError

# Compute threads that spin while they wait take the cores from data workers and from other processes: steps get many times
# slower on a busy machine. Read when torch is first imported, so tools import this module before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_tool(main: Callable[[list[str]], object]) -> None:
    """Run `main(arguments)` and leave the process with a status that says how it went.

    `UserError` and `OSError` (a full disk, a folder that cannot be written) become one line `error: ...` on
    standard error and status 2; Ctrl-C becomes status 130. With `--debug` among the arguments, which is taken
    out before `main` sees them, the traceback is shown instead.
    """
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
