"""The exceptions that end a command, and the exit codes that they stand for."""

import signal
import sys
from collections.abc import Callable
from functools import wraps


class UserError(ValueError):
    """An error that the user can fix; the text says what was expected, what came and what to do.

    Commands print it without a traceback and exit with a non-zero code.
    """


class Stopped(BaseException):
    """The process was asked to stop. Not an Exception: no handler of errors should swallow it.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number  # the shells' convention: 130 for Ctrl-C, 143 for SIGTERM
        super().__init__(self.name)


def with_exit_codes(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Decorate the `main` of a command's module.

    A UserError is printed and returns 2; a signal returns 128 + its number, 130 for Ctrl-C.
    """
    command = main.__module__.rpartition(".")[2]

    @wraps(main)
    def run(arguments: list[str]) -> int:
        try:
            return main(arguments)
        except UserError as error:
            print(f"fashion-lit {command}: {error}", file=sys.stderr)
            return 2
        except Stopped as stop:
            return stop.exit_code
        except KeyboardInterrupt:
            return 130

    return run
