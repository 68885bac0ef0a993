"""The parser of a command's flags, whose errors are one sentence."""

import argparse
import math
import re
from typing import NoReturn

from typing_extensions import override

from fashion_lit.errors import UserError
from fashion_lit.text import did_you_mean, shorten


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are a UserError of one sentence.

    Args:
        command: name of the command.
        description: text of its help.
    """

    def __init__(
        self, command: str, description: str | None = None, *, add_help: bool = True
    ) -> None:
        super().__init__(
            prog=f"fashion-lit {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )

    @override
    def error(self, message: str) -> NoReturn:
        """Raise a UserError that says what was expected, or names the most similar flag."""
        text = shorten(" ".join(message.split()), 300)
        unknown = re.match(r"unrecognized arguments: (\S+)", text)
        wrong = re.match(r"argument (?:\S+/)?(\S+): (.*)", text)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            hint = did_you_mean(unknown[1], flags) or f"; see {self.prog} --help."
            raise UserError(f"Unknown argument `{unknown[1]}`{hint}")
        if wrong:
            choice = re.match(r"invalid choice: (.*) \(choose from (.*)\)", wrong[2])
            detail, hint = wrong[2].removeprefix("expected "), ""
            if choice:
                hint = did_you_mean(choice[1].strip("'"), re.findall(r"'([^']*)'", choice[2]))
                detail = f"to be one of {choice[2]}, but got {choice[1]}"
            elif detail.startswith("ignored explicit argument"):
                detail = f"without a value, but got {detail.split()[-1]}"
            elif "argument" in detail and not detail.startswith("to be"):
                detail = f"with {detail}"
            raise UserError(f"Expected `{wrong[1]}` {detail}{hint or '.'}")
        raise UserError(f"{text[:1].upper()}{text[1:]}; see {self.prog} --help.")


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add --plugins to a command that loads runs."""
    parser.add_argument(
        "--plugins",
        type=lambda text: text.strip("[]").split(","),
        default=[],
        metavar="NAME",
        help="packages that you trust, so that the runs' own classes may be imported: a,b",
    )


def positive_number(text: str) -> float:
    """Parse a finite number above 0, for `add_argument(type=…)`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"to be a number above 0, but got {shorten(text)!r}")
    return number


def positive_integer(text: str) -> int:
    """Parse a whole number from 1 to 10**9, for `add_argument(type=…)`."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number <= 10**9:
        raise argparse.ArgumentTypeError(
            f"to be a whole number of at least 1, but got {shorten(text)!r}"
        )
    return number
