"""Trainings by `fashion-lit train`, each in a process of its own, and what is told of them."""

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path

from commands import TRAIN, Done, Turn
from results import Figures

# Of every run in miniature: small and quick data.
SMALL_DATA = (
    "data=synthetic",
    "data.num_train=700",
    "data.num_test=101",
    "data.val_size=170",
    "data.batch_size=50",
    "data.eval_batch_size=40",
)
TINY = "model.network.widths=[8,16,32]"  # the default model in miniature
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
    """Return the command that begins a run."""
    run_dir = f"run_dir={place(turn, name).as_posix()}"
    return [*TRAIN, run_dir, *turn.in_small(*SMALL_DATA), *overrides]


def continue_command(turn: Turn, name: str, *overrides: str) -> list[str]:
    """Return the command that goes on with a run, which knows its settings."""
    return [*TRAIN, f"run_dir={place(turn, name).as_posix()}", *overrides]


def train(
    turn: Turn, name: str, *overrides: str, environment: Mapping[str, str] | None = None
) -> Figures:
    """Train to the end; returns what came out."""
    return describe(turn, name, turn.run(train_command(turn, name, *overrides), environment))


def describe(turn: Turn, name: str, done: Done) -> Figures:
    """Return what a run's screen and directory say."""
    told: Figures = {"exit": done.code, "wall_s": round(done.seconds, 1)}
    lines = done.out.splitlines()
    if first := next((line for line in lines if " parameters, on " in line), ""):
        told["on"] = first.partition(" parameters, on ")[2]
    told["epochs"] = [read_epoch(line) for line in lines if re.match(r"\d+/\d+ ", line)]
    metrics = read_json(place(turn, name) / "metrics.json")
    told |= {key: metrics[key] for key in METRICS if key in metrics}
    if status := read_json(place(turn, name) / "status.json"):
        told |= {key: status[key] for key in ("state", "step")}
        told["reason"] = status["reason"][:300]
    told["notices"] = [line[:200] for line in done.err.splitlines() if line.strip()][:8]
    if not done.ok and "reason" not in told:
        told["reason"] = done.last_words
    return told


def read_epoch(line: str) -> Figures:
    """Read a line of the table that a run prints; the best epoch's ends with "best"."""
    cells = line.removesuffix("best").split()
    return {
        "seconds": float(cells[-2]),
        "images_per_second": float(cells[-1].replace(",", "")),
        "val_accuracy": cells[4],
    }


def read_json(path: Path) -> Figures:
    """Return what a file of a run holds, {} if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def is_on_gpu(told: Figures) -> bool:
    """Whether a run says that it trained on a GPU."""
    return not told.get("on", "cpu").startswith("cpu")


def speed(told: Figures) -> float | None:
    """Return the images a second of the later epochs, the first one warming up."""
    epochs = [epoch["images_per_second"] for epoch in told["epochs"]]
    return statistics.median(epochs[1:] or epochs) if epochs else None


def in_short(told: Figures) -> str:
    """Say what came out of a run."""
    parts = []
    if told["exit"] != 0:
        parts.append(f"exit {told['exit']}: {told.get('reason', '')[:120]}")
    for key, form in (
        ("val/accuracy", "val {:.2%}"),
        ("test/accuracy", "test {:.2%}"),
        ("seconds", "{:.1f} s"),
        ("cuda/max_allocated_gib", "{:.2f} GiB"),
    ):
        if key in told:
            parts.append(form.format(told[key]))
    if (rate := speed(told)) is not None:
        parts.append(f"{rate:,.0f} images/s")
    parts.append(told.get("on", ""))
    return ", ".join(part for part in parts if part)
