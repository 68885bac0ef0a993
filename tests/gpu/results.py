"""The results of the check, written to a folder as they come.

    results = Results(Path("results"))
    results.add(Result("env", True, "no GPU, torch 2.11.0", figures={}, at_s=0.0, seconds=4.2))

The folder then holds results.jsonl (all figures, one line per stage), table.txt (the summaries),
log.txt (the output of failed commands) and benchmark.json (the benchmark's rows).
"""

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Figures = dict[str, Any]

MARKS = {True: "ok", False: "FAIL", None: "-"}
MAX_SUMMARY = 420  # characters of a summary in the table


class Outcome(NamedTuple):
    """The return value of a stage: whether it succeeded, a summary and all figures."""

    well: bool
    summary: str
    figures: Figures


@dataclass(frozen=True)
class Result:
    """The result of a stage.

    Args:
        stage: its name.
        well: whether it succeeded; None if it was skipped.
        said: a summary.
        figures: all figures.
        at_s: when it began, in seconds since the check began.
        seconds: its duration.
        card: the GPU's utilization and memory during the stage; {} without a GPU.
    """

    stage: str
    well: bool | None
    said: str
    figures: Figures
    at_s: float
    seconds: float
    card: dict[str, float] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The stage's line of table.txt."""
        busy = f"{self.card['gpu_busy_percent']:.0f} %" if self.card else ""
        return (
            f"{self.stage:<16} {MARKS[self.well]:<4} {self.seconds:>6.1f} s {busy:>5}  "
            f"{self.said[:MAX_SUMMARY]}"
        )

    @property
    def record(self) -> Figures:
        """The stage's line of results.jsonl, as a dict."""
        record = asdict(self)
        return record | record.pop("card")


class Results:
    """A folder of results, which concurrent stages can write to.

    Args:
        folder: created if absent; an earlier check's results in it are deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[Result] = []
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("results.jsonl", "table.txt", "log.txt", "benchmark.json"):
            (folder / name).unlink(missing_ok=True)

    @property
    def table(self) -> str:
        """The table of all stages so far."""
        return "\n".join(result.line for result in self.found) + "\n"

    @property
    def all_well(self) -> bool:
        """Whether no stage failed or was skipped."""
        return all(result.well for result in self.found)

    def add(self, result: Result) -> None:
        """Write a stage's result and print its line."""
        with self._lock:
            self.found.append(result)
            self._append("results.jsonl", json.dumps(result.record) + "\n")
            (self.folder / "table.txt").write_text(self.table, encoding="utf-8")
            print(result.line, flush=True)

    def figures_of(self, stage: str) -> Figures | None:
        """Return the figures of a completed stage, or None."""
        return next((result.figures for result in self.found if result.stage == stage), None)

    def add_log(self, text: str) -> None:
        """Append the output of a failed command to log.txt."""
        with self._lock:
            self._append("log.txt", text)

    def add_benchmark(self, part: str, rows: list[Figures]) -> None:
        """Add the rows of one part to benchmark.json."""
        path = self.folder / "benchmark.json"
        with self._lock:
            whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            path.write_text(json.dumps(whole | {part: rows}, indent=1), encoding="utf-8")

    def _append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
