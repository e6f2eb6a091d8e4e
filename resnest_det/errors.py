"""Errors for input that a user can correct, and the nearest known name for one that is unknown."""

import difflib
import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager

# What moves a terminal's cursor, colors it, turns the direction of text round, ends a line, or cannot be encoded.
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL_IN_LINES, _CONTROL_IN_LINE = re.compile(f"[{_CONTROL}]"), re.compile(rf"[{_CONTROL}\t\n]")
# The last two are what threads and oneDNN's operations say.
_OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot) allocate memory|can't start new thread|could not (create|execute) a primitive", re.I
)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/?#\s'\"]*@")


def printable(text: str, *, lines: bool = False) -> str:
    """`text` for a terminal or a log: control characters as `\\x1b`, user and password of addresses as `***`.

    Args:
        lines: leave line breaks and tabs, where the text is more than one line.
    """
    text = _USER_IN_ADDRESS.sub("***@", text)
    return (_CONTROL_IN_LINES if lines else _CONTROL_IN_LINE).sub(lambda found: ascii(found.group())[1:-1], text)


def shown(value: object, most: int = 80) -> str:
    """A value for a message, at most `most` characters of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists within lists
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def without_middle(text: str, most: int) -> str:
    """A text of which the middle is left out where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


class UserError(ValueError):
    """Bad input: a file, key, argument or dataset that cannot be used.

    The message is one `printable` line that names the thing and says what would work; of a longer one than `MOST_CHARACTERS`
    the middle is left out. Command-line tools print it without a traceback and exit with status 2; a traceback would bury it.
    """

    MOST_CHARACTERS = 4000

    def __init__(self, message: str):
        super().__init__(printable(without_middle(message, self.MOST_CHARACTERS)))


def out_of_memory(error: BaseException) -> UserError | None:
    """What to tell instead of `error`, if it is one of those by which Python, torch and the system say that memory ran out."""
    text = str(error)
    if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(text):
        return None
    reason = f" ({without_middle(text.splitlines()[0], 300)})" if text else ""
    return UserError(f"memory ran out{reason}; fewer images at a time, smaller ones, or fewer processes that read them need less")


class ArgumentError(UserError):
    """An argument that a class or function cannot use; `naming` puts a configuration's key in its place.

    Args:
        name: of the argument.
        problem: what follows the name: the value, and what would work.
    """

    def __init__(self, name: str, problem: str):
        problem = without_middle(problem, 600)  # it may show a value of any length
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


@contextmanager
def naming(keys: Mapping[str, str]):
    """Name arguments by what a user has set: `keys` has an argument's name to that of a config key or a flag.

    Raises:
        UserError: an `ArgumentError` was raised within, of an argument that `keys` has.
    """
    try:
        yield
    except ArgumentError as error:
        if error.name not in keys:
            raise
        raise UserError(f"{keys[error.name]} {error.problem}") from None


def nearest(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Up to `count` known names that resemble `name`, the most similar first; none below `cutoff` (0 to 1)."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)
