"""The one exception whose text is meant for the person at the terminal."""


class UserError(ValueError):
    """Something the user can mend; the text says what was expected, what came and what to do.

    Commands print it without a traceback and exit with a non-zero code.
    """
