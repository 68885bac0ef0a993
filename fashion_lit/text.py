"""Text for people."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pad the cells of a table so that each column has one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
