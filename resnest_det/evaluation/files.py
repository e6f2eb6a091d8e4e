"""Reading and writing the JSON files of an evaluation, with errors that name the file."""

import json
import os

from resnest_det.errors import UserError


def read_json(path: str):
    """The content of a JSON file.

    Raises:
        UserError: the file is absent, cannot be read or is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


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
