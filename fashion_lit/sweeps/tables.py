"""Format a leaderboard as rows, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fashion_lit.sweeps.ranking import Entry, RunSummary, describe_name, have_names
from fashion_lit.text import align, one_line, shorten

MAX_SETTINGS = 8  # columns of a table that is on no terminal
MAX_SETTING, MAX_STATE, NORMAL_STATE = 24, 100, 24  # characters of a cell
# What decides which images validate.
SPLIT_SETTINGS = ("data.val_size", "data.split_seed", "data.validate_on_test")


def make_rows(entries: Sequence[Entry], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the leaderboard as dicts; unknown values are None."""
    return [make_row(place, entry, columns) for place, entry in enumerate(entries, start=1)]


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


def markdown(entries: Sequence[Entry], settings: Sequence[str], metric: str, width: int = 0) -> str:
    """Return the ranked entries as a Markdown table, also aligned as plain text.

    Columns that say nothing are left out: the names of a sweep's jobs, which repeat the settings;
    std and n of single seeds; the state if all runs are finished.

    Args:
        entries: the entries, best first.
        settings: those that differ, the most informative first.
        metric: the ranked metric.
        width: the settings that fit into so many characters are columns, but at least one if the
            runs have no names; 0: MAX_SETTINGS of them.
    """
    rows = make_rows(entries, settings)
    before, after = ["rank"], ["mean", "seconds"]
    if named := have_names(entries):
        before.append("run")
        for row, entry in zip(rows, entries, strict=True):
            row["run"] = describe_name(entry)
    if any(row["n"] > 1 for row in rows):
        after[1:1] = ["std", "n"]
    if has_state := any(row["state"] != "finished" for row in rows):
        after.append("state")
    heads = {"mean": metric, "rank": "#"}
    columns = {
        name: [heads.get(name, name), *(cell(row, name) for row in rows)]
        for name in (*before, *settings, *after)
    }
    shown = list(settings[:MAX_SETTINGS])
    if width:
        widths = {name: 3 + max(map(len, cells)) for name, cells in columns.items()}
        widths["state"] = min(widths.get("state", 0), NORMAL_STATE)
        room = width - 1 - sum(widths[name] for name in (*before, *after))
        shown = those_that_fit(settings, widths, room) or list(settings[: 0 if named else 1])
    names = (*before, *shown, *after)
    head, *rest = align(list(zip(*(columns[name] for name in names), strict=True)))
    rule = ["-" * len(text) for text in head]
    if has_state:  # a long reason, in the last column, does not widen the other lines
        rule[-1] = "-" * len("state")
    lines = [[*line[:-1], line[-1].rstrip() if has_state else line[-1]] for line in (head, *rest)]
    lines.insert(1, rule)
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    near = sum(row["near_best"] for row in rows)
    if near:
        table += f"\n≈: within noise of the best, the 95 % interval of the difference ({near}).\n"
    if others := [name for name in SPLIT_SETTINGS if name in settings]:
        table += (
            f"\nThese runs validate on different images ({', '.join(others)}), which may be easier "
            "or harder.\n"
        )
    if left := len(settings) - len(shown):
        table += (
            f"\nLeft out: {left} of {len(settings)} settings that differ. All of them are in "
            "leaderboard.csv and leaderboard.json.\n"
        )
    return table


def those_that_fit(settings: Sequence[str], widths: Mapping[str, int], room: int) -> list[str]:
    """Return the settings whose columns fit into `room` characters; the first have precedence."""
    found = []
    for name in settings:
        if widths[name] <= room:
            found.append(name)
            room -= widths[name]
    return found


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
    most = MAX_STATE if name in ("run", "state") else MAX_SETTING
    return markdown_text(shorten(str(value), most))


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


def trouble(runs: Sequence[RunSummary]) -> str:
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
