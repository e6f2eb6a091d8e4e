"""Text files of labelling tools."""

from resnest_det.errors import UserError

_MOST_BYTES = 512 * 2**20


def read_text(path: str) -> str:
    """The content of a text file in UTF-8, with or without a byte-order mark, or in UTF-16 with one.

    Raises:
        UserError: it cannot be read, or is neither.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path}: more than {_MOST_BYTES // 2**20} MB")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from error


def read_lines(path: str) -> list[str]:
    """The lines of `read_text`, ended by any of \\n, \\r\\n and \\r."""
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
