"""The probe that finds the lines of code where a run waits for the device."""

import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fashion_lit.commands.train import main as train

HERE = Path(__file__).parent
MESSENGERS = ("warnings.py", "contextlib.py")  # the innermost frames when a warning is shown
MOST_PLACES = 25


def waits(*overrides: str) -> dict[str, Any]:
    """Train, and count torch's synchronisation warnings by line of code."""
    counts: Counter[str] = Counter()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            counts[place_of_call()] += 1

    warnings.showwarning = show  # type: ignore[assignment]
    warnings.simplefilter("always")
    if torch.cuda.is_available():
        torch.cuda.init()
        torch.cuda.set_sync_debug_mode("warn")
    with screen_to_stderr():
        code = train(list(overrides))
    return {"exit": code, "total": counts.total(), "places": dict(counts.most_common(MOST_PLACES))}


def place_of_call() -> str:
    """Describe the project's innermost line on the stack and, if different, the innermost line."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if Path(frame.filename).parent != HERE and Path(frame.filename).name not in MESSENGERS
    ]
    own = [frame for frame in frames if f"{os.sep}fashion_lit{os.sep}" in frame.filename]
    inner = frames[-1]
    mine = own[-1] if own else inner
    return describe(mine) if inner is mine else f"{describe(mine)} > {describe(inner)}"


def describe(frame: traceback.FrameSummary) -> str:
    """Return "file:line function"."""
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


@contextmanager
def screen_to_stderr() -> Iterator[None]:
    """Redirect standard output to standard error, as standard output must hold only JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
