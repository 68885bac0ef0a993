"""Exceptions that end a command, and their exit codes."""

import signal
import sys
from collections.abc import Callable
from functools import wraps

from fashion_lit.text import shorten

MAX_MESSAGE = 1000  # characters; a longer one repeats what was typed


class UserError(ValueError):
    """An error that the user can fix.

    Its message states what was expected, what was found, and what to do. Commands print it without
    a traceback and exit with a non-zero code.
    """


class RunError(Exception):
    """A run began and failed; its status says why. The `__cause__` is the error."""


class Stopped(BaseException):
    """A signal asked the process to stop.

    Derives from BaseException, so that `except Exception` does not swallow it.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number  # the shells' convention: 130 for Ctrl-C, 143 for SIGTERM
        super().__init__(self.name)


def with_exit_codes(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Decorate the `main` of a command's module: map exceptions to exit codes.

    A UserError or an OSError is printed to standard error and gives 2; a signal gives 128 + its
    number (130 for Ctrl-C).
    """
    command = main.__module__.rpartition(".")[2].replace("_", "-")

    @wraps(main)
    def run(arguments: list[str]) -> int:
        try:
            return main(arguments)
        except UserError as error:
            message = shorten(str(error), MAX_MESSAGE)
            print(f"fashion-lit {command}: {message}", file=sys.stderr)
            return 2
        except Stopped as stop:
            return stop.exit_code
        except OSError as error:  # a place that cannot be read or written
            reason = f"{error.strerror or error}: {error.filename or 'while writing a file'}"
            print(f"fashion-lit {command}: {reason}; choose another place.", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    return run
