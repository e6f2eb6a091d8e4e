"""Errors for input that a user can correct, and the nearest known name for one that is unknown."""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: a file, key, argument or dataset that cannot be used.

    The message is one line that names the thing and says what would work. Command-line tools print it
    without a traceback and exit with status 2; a traceback would bury it.
    """


class ArgumentError(UserError):
    """An argument that a class or function cannot use; `naming` puts a configuration's key in its place.

    Args:
        name: of the argument.
        problem: what follows the name: the value, and what would work.
    """

    def __init__(self, name: str, problem: str):
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
