"""Time work on a device that may run asynchronously."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

NUM_WARM_UP_REPEATS = 2


def device_name() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait until the GPU, if any, has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], Any], num_repeats: int) -> float:
    """Return the median time of `num_repeats` calls, each synchronized with the device."""
    times = []
    for _ in range(NUM_WARM_UP_REPEATS + num_repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[NUM_WARM_UP_REPEATS:])
