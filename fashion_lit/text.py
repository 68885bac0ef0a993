"""Text layout for the terminal."""

from collections.abc import Sequence


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
