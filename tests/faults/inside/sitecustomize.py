"""What a disturbed process finds around it; Python imports this by its name, with this folder on PYTHONPATH.

FAULT says what: `write:N`, `sync:N` and `replace:N` let the Nth of those calls fail once, for want of space or with an error of
the disk, and `clock:N` sets the clock back by a day after it was read N times.
"""

import builtins
import errno
import io
import os
import time

_kind, _, _number = os.environ.get("FAULT", "").partition(":")
_left = int(_number or 0)


def _due() -> bool:
    global _left
    _left -= 1
    return _left == 0


def _failing(call, code):
    def fails_once(*args, **kwargs):
        if _due():
            raise OSError(code, os.strerror(code))
        return call(*args, **kwargs)

    return fails_once


class _File(io.FileIO):
    def write(self, content):
        if _due():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def _open_for_writing(call):
    def opened(file, mode="r", *args, **kwargs):
        if set(mode) & {"w", "a"} and "+" not in mode:
            raw = _File(file, mode.replace("b", "").replace("t", ""), opener=kwargs.get("opener"))
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")
        return call(file, mode, *args, **kwargs)

    return opened


if _kind == "write":
    builtins.open = _open_for_writing(open)
    os.fdopen = _open_for_writing(os.fdopen)
elif _kind == "sync":
    os.fsync = _failing(os.fsync, errno.EIO)
elif _kind == "replace":
    os.replace = _failing(os.replace, errno.EIO)
elif _kind == "clock":
    _time = time.time
    time.time = lambda: _time() - (0 if _left > 0 and not _due() else 86400)
