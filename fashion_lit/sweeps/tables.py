"""Format a leaderboard as rows, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from fashion_lit.sweeps.ranking import Entry, Run
from fashion_lit.text import align, one_line


def make_row(place: int, entry: Entry, columns: Sequence[str]) -> dict[str, Any]:
    """Return one row of the leaderboard as a dict; unknown values are None."""
    return {
        "rank": place if entry.metric else None,
        **{column: entry.runs[0].settings.get(column) for column in columns},
        "mean": entry.mean if entry.metric else None,
        "std": None if math.isnan(entry.deviation) else entry.deviation,
        "n": len(entry.metric),
        "near_best": entry.near_best,
        "seconds": entry.seconds,
        "state": describe_state(entry),
        "jobs": [run.path.name for run in entry.runs],
    }


def describe_state(entry: Entry) -> str:
    """Describe the states of an entry's unfinished runs, with progress or reason; or "finished"."""
    unfinished = [run for run in entry.runs if run.state != "finished"]
    states = [f"{run.state} ({run.note})" if run.note else run.state for run in unfinished]
    return "; ".join(states) or "finished"


def markdown(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """Return the rows as a Markdown table whose columns are also aligned as plain text."""
    hidden = ("jobs", "near_best")
    names = [name for name in rows[0] if name not in hidden]
    heads = {"mean": metric, "rank": "#"}
    lines = [[heads.get(name, name) for name in names]]
    lines += [[cell(row, name) for name in names] for row in rows]
    head, *rest = align(lines)
    rule = ["-" * len(name) for name in head]
    text = "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *rest))
    near = sum(row["near_best"] for row in rows)
    if near:
        text += f"\n≈: within noise of the best, the 95 % interval of the difference ({near}).\n"
    return text


def cell(row: dict[str, Any], name: str) -> str:
    """Format one value of a row for the Markdown table."""
    value = row[name]
    if value is None:
        return "-"
    if name == "mean":
        return f"{value:.4f}" + (" ≈" if row["near_best"] else "")
    if name == "std":
        return f"{value:.4f}"
    if name == "seconds":
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return markdown_text(value)


def markdown_text(value: Any) -> str:
    """Return a value as text that neither ends a table's cell nor is read as HTML."""
    text = one_line(str(value)).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def csv_value(value: Any) -> Any:
    """Return a value that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def trouble(runs: Sequence[Run]) -> str:
    """Return a Markdown list of the directories without a readable run; "" if there are none."""
    damaged = [
        f"- {markdown_text(run.path.name)}: {markdown_text(run.note)}"
        for run in runs
        if not run.settings
    ]
    return "\nNot ranked:\n\n" + "\n".join(damaged) + "\n" if damaged else ""


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as CSV, with unrounded numbers."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        row = row | {"jobs": " ".join(row["jobs"])}
        writer.writerow({key: csv_value(value) for key, value in row.items()})
    return buffer.getvalue()
