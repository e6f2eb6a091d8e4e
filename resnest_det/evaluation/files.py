"""Writing the files of an evaluation, with errors that name the file."""

import json
import os

from resnest_det.errors import UserError


def write_bytes(path: str, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the earlier one, if any, as it was.

    Raises:
        UserError: the folder cannot be made or the file cannot be written.
    """
    unfinished = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
            os.replace(unfinished, path)
        except OSError:
            if os.path.exists(unfinished):
                os.remove(unfinished)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def write_json(path: str, value) -> None:
    """Write `value` as JSON; an earlier file of that name survives a failure, as in `write_bytes`."""
    write_bytes(path, json.dumps(value).encode())
