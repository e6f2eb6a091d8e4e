"""Atomic writing: a file is either the whole old one or the whole new one. Also, where the package's own files are."""

import datetime
import glob
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import portalocker

from resnest_det.errors import UserError, printable

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".unfinished"


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w", *, sync: bool = True) -> Iterator[IO]:
    """A file object whose content replaces `path` in one step when the block ends without an error.

    The content is on the disk before the name points at it, so neither a killed process nor a power cut
    leaves a torn file. After an error the earlier file stays and the unfinished one is removed.

    Args:
        sync: wait for the disk. Without it a power cut can lose the file; a killed process cannot.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if sync:
        _sync_folder(path.parent)


def open_unlinked(path: str | os.PathLike, mode: str) -> IO:
    """`open` for writing to a file that must be there itself: a link in its place is removed, what it leads to stays as it is.

    Raises:
        OSError: the file cannot be opened; UserError: it is no file, but a pipe or a device.
    """
    path = Path(path)
    if path.is_symlink():
        path.unlink()

    def opener(name: str, flags: int) -> int:
        # Not to wait at a pipe for a reader.
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file")
    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=opener)


@contextmanager
def one_of_many(path: str | os.PathLike) -> Iterator[IO]:
    """`atomic_write` of bytes that does not wait for the disk: of such files there may be thousands.

    Raises:
        UserError: the file cannot be written; an earlier one of that name is unchanged.
    """
    try:
        with atomic_write(path, "wb", sync=False) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_bytes(path: str, content: bytes) -> None:
    """Write `one_of_many` files and make its folder.

    Raises:
        UserError: the folder cannot be made or the file cannot be written; an earlier file of that name is unchanged.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    with one_of_many(path) as file:
        file.write(content)


def _umask() -> int:
    # mkstemp's 0600 would keep a group from reading shared checkpoints. The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk too. Some platforms cannot open folders.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_unfinished(folder: str | os.PathLike, name: str = "") -> list[str]:
    """Delete the unfinished files that killed processes left in `folder`, all or those of `name`, and return their names."""
    left = sorted(Path(folder).glob(f".{glob.escape(name)}*{TEMPORARY_SUFFIX}"))
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


def prepare_output_dir(folder: str | os.PathLike) -> None:
    """Make `folder` and check that files can be written into it.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def held(path: str | os.PathLike) -> Iterator[None]:
    """Hold the lock `path`, a file that is there only as long: nobody else, on this machine or another, can hold it meanwhile.

    The system releases the lock of a process that has been killed; its file stays until the next one removes it. On network
    file systems the server does, for NFS 4 about 90 s after a machine has vanished. Where there are no locks at all, as on
    Lustre without `flock`, there is a warning and nothing is held.

    Raises:
        UserError: another process holds it; the message says which, on which machine and since when.
        OSError: the file cannot be made.
    """
    path = Path(path)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "r+")
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.LockException as error:
            holder = printable(file.read(200).strip())
            file.close()
            if not isinstance(error.args[0], BlockingIOError):
                logger.warning("%s cannot be locked, so see to it that nothing else uses the folder: %s", path, error.args[0])
                yield
                return
            raise UserError(f"{path} is held by {holder or 'another process'}") from None
        # Who held it before may have removed the file between its opening and its locking: then it locks nothing.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()
    # A forked process would hold the lock as long as it lives; closing its copy does not release it.
    os.register_at_fork(after_in_child=file.close)
    try:
        file.truncate()
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is released
        file.close()


def packaged(name: str) -> Path:
    """The folder `name`, `configs` or `docs`, that comes with the package: inside an installed one, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
