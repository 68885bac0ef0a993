"""Run fashion-lit and kill it at a chosen point: python killed_train.py PLACE N train …

The process sends itself SIGKILL when it reaches PLACE for the Nth time. PLACE is "step" (between a
batch's forward pass and its optimizer step), "validation" (in a validation batch, also of the best
checkpoint), "test" (in a test batch), "save" (half of a checkpoint written), "rename" (between the
two renames of a save), "epoch" (after an epoch, before its checkpoint is saved), or "never".
"""

import os
import sys
from pathlib import Path
from typing import Any

from fashion_lit import __main__, files
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs import checkpoints

PLACE, NUMBER = sys.argv[1], int(sys.argv[2])
arrivals = 0


def arrive() -> None:
    """Kill this process at the Nth call."""
    global arrivals
    arrivals += 1
    if arrivals == NUMBER:
        sys.stdout.flush()
        os.kill(os.getpid(), 9)


def die_after(owner: Any, name: str) -> None:
    """Make every return from a method count as an arrival."""
    original = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        arrive()
        return result

    setattr(owner, name, method)


def half_saved(path: Path, data: bytes, **kwargs: Any) -> None:
    """Write half of a checkpoint, count an arrival, then write the whole checkpoint."""
    half = path.with_name(f"{path.name}.half.part")
    half.write_bytes(data[: len(data) // 2])
    arrive()
    half.unlink()
    files.write_atomically(path, data, **kwargs)


def renamed(path: Path, target: Path) -> Path:
    """Rename, and count an arrival after last.ckpt was moved away."""
    os.replace(path, target)  # noqa: PTH105
    if path.name == "last.ckpt":
        arrive()
    return target


if PLACE == "save":
    checkpoints.write_atomically = half_saved  # type: ignore[assignment]
elif PLACE == "rename":
    Path.replace = renamed  # type: ignore[assignment,method-assign]
elif PLACE != "never":
    methods = {
        "step": "training_step",
        "validation": "validation_step",
        "test": "test_step",
        "epoch": "on_train_epoch_end",
    }
    die_after(ImageClassifier, methods[PLACE])

if __name__ == "__main__":
    sys.argv = ["fashion-lit", *sys.argv[3:]]
    __main__.main()
