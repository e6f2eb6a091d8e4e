"""JSON files as they lie on disks: in UTF-8, with a byte-order mark, in UTF-16, or compressed with gzip."""

import gzip
import hashlib
import json
import zlib

from resnest_det.contents import what_it_is
from resnest_det.errors import UserError


def read_json(json_file: str) -> dict:
    """The object in an annotation file or one of results, unchecked.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    return parse_json(read_bytes(json_file), json_file)


def read_bytes(json_file: str) -> bytes:
    """The bytes of a file, unpacked where it is compressed with gzip, without a byte-order mark.

    Raises:
        UserError: it cannot be read.
    """
    return _unpacked(_stored_bytes(json_file), json_file)


def read_bytes_and_digest(json_file: str) -> tuple[bytes, str]:
    """What `read_bytes` gives, and the SHA-256 of the file as it is stored, in hexadecimal digits.

    Raises:
        UserError: see `read_bytes`.
    """
    content = _stored_bytes(json_file)
    return _unpacked(content, json_file), hashlib.sha256(content).hexdigest()


def _stored_bytes(json_file: str) -> bytes:
    try:
        with open(json_file, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{json_file}: cannot be read: {error.strerror or error}") from error


def _unpacked(content: bytes, json_file: str) -> bytes:
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{json_file}: cannot be unpacked, damaged gzip: {error}") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def parse_json(content: bytes, json_file: str) -> dict:
    """The object in bytes of `read_bytes`.

    Raises:
        UserError: they are not JSON, or hold something else.
    """
    try:
        raw = json.loads(content.decode(json.detect_encoding(content)))
    except json.JSONDecodeError as error:
        if said := what_it_is(content[:512]):
            raise UserError(f"{json_file}: {said}") from None
        raise UserError(
            f"{json_file}: malformed JSON at line {error.lineno}, column {error.colno} (character {error.pos}): {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{json_file}: malformed JSON, not UTF-8 text at byte {error.start}") from error
    except RecursionError as error:
        raise UserError(f"{json_file}: malformed JSON, lists within lists without end") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{json_file}: cannot be read: {str(error).split(';')[0]}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{json_file}: not a COCO annotation file: holds a {type(raw).__name__}, not an object")
    return raw
