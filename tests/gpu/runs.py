"""Train by `fashion-lit train` in separate processes, and collect the figures of the runs."""

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path

from commands import TRAIN, Done, Turn
from results import Figures

# Overrides of every run with --small: a small synthetic data set.
SMALL_DATA = (
    "data=synthetic",
    "data.num_train=700",
    "data.num_test=101",
    "data.val_size=170",
    "data.batch_size=50",
    "data.eval_batch_size=40",
)
TINY = "model.network.widths=[8,16,32]"  # a small version of the default model
FEW = ("trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.max_epochs=1")
QUIET = ("tensorboard.pictures=false", "test=false")
METRICS = (
    "val/accuracy",
    "val/loss",
    "test/accuracy",
    "test/loss",
    "train/accuracy",
    "train/images_per_second",
    "seconds",
    "best_epoch",
    "cuda/max_allocated_gib",
    "cuda/max_reserved_gib",
)


def place(turn: Turn, name: str) -> Path:
    """Return the directory of a run."""
    return turn.check.work / "runs" / name


def last_checkpoint(turn: Turn, name: str) -> str:
    """Return the path of a run's last checkpoint."""
    return str(place(turn, name) / "checkpoints" / "last.ckpt")


def train_command(turn: Turn, name: str, *overrides: str) -> list[str]:
    """Return the command that starts a run."""
    run_dir = f"run_dir={place(turn, name).as_posix()}"
    return [*TRAIN, run_dir, *turn.in_small(*SMALL_DATA), *overrides]


def continue_command(turn: Turn, name: str, *overrides: str) -> list[str]:
    """Return the command that resumes a run with its recorded settings."""
    return [*TRAIN, f"run_dir={place(turn, name).as_posix()}", *overrides]


def train(
    turn: Turn, name: str, *overrides: str, environment: Mapping[str, str] | None = None
) -> Figures:
    """Train to the end; returns the run's figures."""
    return describe(turn, name, turn.run(train_command(turn, name, *overrides), environment))


def describe(turn: Turn, name: str, done: Done) -> Figures:
    """Collect the figures of a run from its output and its directory."""
    figures: Figures = {"exit": done.code, "wall_s": round(done.seconds, 1)}
    lines = done.out.splitlines()
    if first := next((line for line in lines if " parameters, on " in line), ""):
        figures["on"] = first.partition(" parameters, on ")[2]
    figures["epochs"] = [read_epoch(line) for line in lines if re.match(r"\d+/\d+ ", line)]
    metrics = read_json(place(turn, name) / "metrics.json")
    figures |= {key: metrics[key] for key in METRICS if key in metrics}
    if status := read_json(place(turn, name) / "status.json"):
        figures |= {key: status[key] for key in ("state", "step")}
        figures["reason"] = status["reason"][:300]
    figures["notices"] = [line[:200] for line in done.err.splitlines() if line.strip()][:8]
    if not done.ok and "reason" not in figures:
        figures["reason"] = done.last_words
    return figures


def read_epoch(line: str) -> Figures:
    """Parse a line of the table that a run prints; a new best epoch's ends with "best"."""
    cells = line.removesuffix("best").split()
    return {
        "seconds": float(cells[-2]),
        "images_per_second": float(cells[-1].replace(",", "")),
        "val_accuracy": cells[4],
    }


def read_json(path: Path) -> Figures:
    """Return the contents of a JSON file, or {} if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def is_on_gpu(figures: Figures) -> bool:
    """Whether a run reported that it trained on a GPU."""
    return not figures.get("on", "cpu").startswith("cpu")


def speed(figures: Figures) -> float | None:
    """Return the median images per second, without the first epoch, which warms up."""
    epochs = [epoch["images_per_second"] for epoch in figures["epochs"]]
    return statistics.median(epochs[1:] or epochs) if epochs else None


def in_short(figures: Figures) -> str:
    """Summarize the figures of a run."""
    parts = []
    if figures["exit"] != 0:
        parts.append(f"exit {figures['exit']}: {figures.get('reason', '')[:120]}")
    for key, form in (
        ("val/accuracy", "val {:.2%}"),
        ("test/accuracy", "test {:.2%}"),
        ("seconds", "{:.1f} s"),
        ("cuda/max_allocated_gib", "{:.2f} GiB"),
    ):
        if key in figures:
            parts.append(form.format(figures[key]))
    if (rate := speed(figures)) is not None:
        parts.append(f"{rate:,.0f} images/s")
    parts.append(figures.get("on", ""))
    return ", ".join(part for part in parts if part)
