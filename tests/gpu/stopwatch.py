"""Time what a device does, which may still be at work when the command to do it returns."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

NUM_WARM_UP_REPEATS = 2


def device_name() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait until a GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], Any], num_repeats: int) -> float:
    """Return the median time of some repeats, waiting for the device in each."""
    times = []
    for _ in range(NUM_WARM_UP_REPEATS + num_repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[NUM_WARM_UP_REPEATS:])
