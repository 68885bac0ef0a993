"""fashion-lit, stopped at a chosen point: python killed_train.py PLACE N train …

PLACE is where the process gets SIGKILL on its Nth arrival: "step" (between a batch's forward pass
and its optimizer step), "validation" (in a validation batch, also when the best checkpoint is
validated at the end), "test", "save" (half of a checkpoint is written), "rename" (between the two
renames of a save), "epoch" (the epoch is complete but not yet saved), or "never".
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fashion_lit import __main__, files
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs import checkpoints

METHODS = {
    "step": "training_step",
    "validation": "validation_step",
    "test": "test_step",
    "epoch": "on_train_epoch_end",
}
KILL = 9


def stop_at(place: str, number: int, signal_number: int = KILL) -> None:
    """Send this process a signal on its `number`th arrival at a place."""
    arrivals = 0

    def arrive() -> None:
        nonlocal arrivals
        arrivals += 1
        if arrivals == number:
            sys.stdout.flush()
            os.kill(os.getpid(), signal_number)

    if place == "save":
        checkpoints.write_atomically = half_saved(arrive)  # type: ignore[assignment]
    elif place == "rename":
        Path.replace = renamed(arrive)  # type: ignore[assignment,method-assign]
    elif place != "never":
        arrive_after(ImageClassifier, METHODS[place], arrive)


def arrive_after(owner: Any, name: str, arrive: Callable[[], None]) -> None:
    """Count every return from a method as an arrival."""
    original = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        arrive()
        return result

    setattr(owner, name, method)


def half_saved(arrive: Callable[[], None]) -> Callable[..., None]:
    """Return what writes half of a checkpoint, counts an arrival, then writes it all."""

    def write(path: Path, data: bytes, **kwargs: Any) -> None:
        half = path.with_name(f"{path.name}.{'0' * 32}.part")
        half.write_bytes(data[: len(data) // 2])
        arrive()
        half.unlink()
        files.write_atomically(path, data, **kwargs)

    return write


def renamed(arrive: Callable[[], None]) -> Callable[[Path, Path], Path]:
    """Return what renames, and counts an arrival after last.ckpt was moved out of the way."""

    def replace(path: Path, target: Path) -> Path:
        os.replace(path, target)  # noqa: PTH105
        if path.name == "last.ckpt":
            arrive()
        return target

    return replace


if __name__ == "__main__":
    stop_at(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["fashion-lit", *sys.argv[3:]]
    __main__.main()
