"""Text for the terminal: tables, commands to be typed, and the name that a wrong one may mean."""

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

CONTAINED = 0.8  # similarity of a name that contains the other one
MIN_LENGTH = 4  # letters of a name that is looked for in other names
PLAIN_VALUE = re.compile(r"(?!null$)[\w/.:+~-]+", re.IGNORECASE)


def align(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pad the cells of a table so that all cells of a column have the same width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]


def one_line(text: str) -> str:
    """Return text as one line without control characters, such as a terminal's escape sequences."""
    return "".join(c if c.isprintable() else " " for c in text)


def shorten(text: str, most: int = 100) -> str:
    """Return text of at most about `most` characters, without its middle if it is longer."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def describe_error(error: BaseException) -> str:
    """Return an error's class and its message in one line, if it has one: "KeyError: 'x'"."""
    message = shorten(" ".join(str(error).split()).rstrip("."), 300)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def quote_command(*words: str) -> str:
    """Return the words as one command line, quoted for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command_for_process(*arguments: str) -> list[str]:
    """Return the command that runs fashion-lit with these arguments in another process.

    Python would first import modules of the working directory there, as a `calendar.py` of the
    user; it does so only if it does in this process, too.
    """
    try:
        places = ["", str(Path.cwd())]
    except FileNotFoundError:  # it was deleted
        places = [""]
    flags = [] if sys.path[0] in places else ["-P"]
    return [sys.executable, *flags, "-m", "fashion_lit", *arguments]


def quote_value(value: str) -> str:
    """Return text as a quoted value in Hydra's grammar."""
    escaped = re.sub(r'(\\+)(?="|$)', r"\1\1", value).replace('"', '\\"')
    return f'"{escaped}"'


def quote_if_needed(value: str) -> str:
    """Return text as a value in Hydra's grammar for a setting that is a name or a path."""
    return value if PLAIN_VALUE.fullmatch(value) else quote_value(value)


def did_you_mean(text: str, choices: Collection[str], prefix: str = "") -> str:
    """Return '; did you mean `…`?' with the nearest of the choices, or '' if none is near."""
    return question([f"{prefix}{name}" for name in nearest(text, choices)])


def question(names: Sequence[str]) -> str:
    """Return "; did you mean `a` or `b`?", or "" for no names."""
    listed = " or ".join(f"`{name}`" for name in names)
    return f"; did you mean {listed}?" if names else ""


def nearest(text: str, choices: Collection[str]) -> list[str]:
    """Return the choice most similar to `text`, [] if none is similar.

    Dotted paths are compared by their last part (`lr` is similar to `optimizer.lr`); the whole path
    breaks ties. Case does not matter. There are up to three if their last parts contain that of
    `text`, and none is equal to it.
    """
    scores = {choice: similarity(text, choice) for choice in choices}
    best = max(scores, key=scores.__getitem__, default="")
    if not best or scores[best] <= 0.6:
        return []
    if scores[best] >= 0.9:
        return [best]
    containing = [c for c in scores if c != best and contains(last_part(c), last_part(text))]
    return [best, *containing[:2]]


def last_part(path: str) -> str:
    """Return the part of a dotted path after its last dot, in lower case."""
    return path.lower().replace("-", "_").rpartition(".")[2]


def contains(name: str, word: str) -> bool:
    """Return whether a name contains a word, if the word is not too short to mean much."""
    return len(word) >= MIN_LENGTH and word in name


def similarity(text: str, choice: str) -> float:
    """Return how similar two dotted paths are: 0 to 1 for their last parts, and a little more."""
    last, choice_last = last_part(text), last_part(choice)
    ratio = difflib.SequenceMatcher(None, last, choice_last).ratio()
    if contains(choice_last, last) or contains(last, choice_last):
        ratio = max(ratio, CONTAINED)
    whole = difflib.SequenceMatcher(None, text.lower(), choice.lower()).ratio()
    return ratio + whole / 100
