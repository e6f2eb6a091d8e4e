"""The error for input that a user can mend."""


class UserError(ValueError):
    """Bad input: a file, key, argument or data set that cannot be used.

    The message is one line that names the thing and says what would work. Command-line tools print it
    without a traceback and exit with status 2; a traceback would bury it.
    """
