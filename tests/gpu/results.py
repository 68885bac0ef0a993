"""What the check finds, written as it is found.

    results = Results(Path("results"))
    results.add(Result("env", True, "no GPU, torch 2.11.0", figures={}, at_s=0.0, seconds=4.2))

The folder then holds results.jsonl (a line a stage, every figure), table.txt (in short), log.txt
(what failed commands said) and benchmark.json (the benchmark's rows).
"""

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Figures = dict[str, Any]

MARKS = {True: "ok", False: "FAIL", None: "-"}
MOST_SAID = 420  # characters in the table


class Outcome(NamedTuple):
    """What a stage returns: whether all is well, what to say in short, and every figure."""

    well: bool
    said: str
    figures: Figures


@dataclass(frozen=True)
class Result:
    """A stage's line.

    Args:
        stage: its name.
        well: None: it was skipped.
        said: in short.
        figures: all of them.
        at_s: when it began, in seconds after the check did.
        seconds: how long it took.
        card: what the GPU did meanwhile, as the meter says it; {} without a GPU.
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
        """The line of the table."""
        busy = f"{self.card['gpu_busy_percent']:.0f} %" if self.card else ""
        return (
            f"{self.stage:<16} {MARKS[self.well]:<4} {self.seconds:>6.1f} s {busy:>5}  "
            f"{self.said[:MOST_SAID]}"
        )

    @property
    def record(self) -> Figures:
        """The line of results.jsonl."""
        record = asdict(self)
        return record | record.pop("card")


class Results:
    """A folder of results; stages that run at once may write at once.

    Args:
        folder: is made, or cleared of an earlier check's results.
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
        """All lines so far."""
        return "\n".join(result.line for result in self.found) + "\n"

    @property
    def all_well(self) -> bool:
        """Whether no stage failed, and none was skipped."""
        return all(result.well for result in self.found)

    def add(self, result: Result) -> None:
        """Write a stage's result, and print its line."""
        with self._lock:
            self.found.append(result)
            self._append("results.jsonl", json.dumps(result.record) + "\n")
            (self.folder / "table.txt").write_text(self.table, encoding="utf-8")
            print(result.line, flush=True)

    def figures_of(self, stage: str) -> Figures | None:
        """Return what a stage that is done has found."""
        return next((result.figures for result in self.found if result.stage == stage), None)

    def add_log(self, text: str) -> None:
        """Keep what a failed command said."""
        with self._lock:
            self._append("log.txt", text)

    def add_benchmark(self, part: str, rows: list[Figures]) -> None:
        """Keep a part of the benchmark."""
        path = self.folder / "benchmark.json"
        with self._lock:
            whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            path.write_text(json.dumps(whole | {part: rows}, indent=1), encoding="utf-8")

    def _append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
