"""Measure contenders alternately in one process, and compare medians.

    rates = alternate({"ours": measure_ours, "peer": measure_peer}, num_rounds=5)

The speed of a shared machine drifts, so only ratios within a round are meaningful.
"""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fashion_lit.data.types import Batch
from fashion_lit.training.device import BF16_UNITS


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        part: the part of the benchmark.
        what: what was measured.
        unit: "images/s" or "steps/s"; or "s", for which less is better.
        ours: this project's figures, one for each round or seed.
        peer: the figures of the peer's fastest variant; [] if there is no peer.
        peer_name: the name of that variant.
        note: a remark, or "".
    """

    part: str
    what: str
    unit: str
    ours: list[float]
    peer: list[float]
    peer_name: str
    note: str = ""

    @property
    def middles(self) -> tuple[float, float]:
        """The average of both sides: means of seconds, medians of rates; NaN without a peer."""
        average = statistics.mean if self.unit == "s" else statistics.median
        return average(self.ours), average(self.peer) if self.peer else math.nan

    @property
    def ratio(self) -> float:
        """This project's speed relative to the peer's; NaN without a peer.

        For rates the median of the rounds' ratios, for seconds the ratio of the means.
        """
        if self.unit == "s":
            ours, peer = self.middles
            return peer / ours
        return statistics.median(o / p for o, p in zip(self.ours, self.peer, strict=True))

    @property
    def extra_milliseconds(self) -> float:
        """The additional milliseconds that this project needs per image or step.

        The median over rounds; NaN if seconds are compared.
        """
        if self.unit == "s":
            return math.nan
        pairs = zip(self.ours, self.peer, strict=True)
        return statistics.median(1000 / o - 1000 / p for o, p in pairs)


def alternate(
    contenders: Mapping[str, Callable[[], float]], num_rounds: int
) -> dict[str, list[float]]:
    """Return each contender's rates, one for each round after an uncounted warm-up round.

    The order is reversed in every second round, so that no contender always runs first.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(num_rounds + 1):
        names = list(contenders)[:: 1 if number % 2 else -1]
        for name in names:
            with kernels_restored():
                rate = contenders[name]()
            if number:
                rates[name].append(rate)
    return rates


@contextmanager
def kernels_restored() -> Iterator[None]:
    """Restore, on exit, the process-wide settings by which torch chooses its kernels.

    Lightning's Trainer changes them for `benchmark` and `deterministic`, this project for
    `precision`.
    """
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    products = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        for name, value in flags.items():
            setattr(cudnn, name, value)
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def best(rates: Mapping[str, list[float]]) -> str:
    """Return the name of the contender with the greatest median rate."""
    return max(rates, key=lambda name: statistics.median(rates[name]))


def images_per_second(
    make_batches: Callable[[], Iterable[Batch]], seconds: float, device: torch.device
) -> float:
    """Return the images per second that arrive on `device`, measured for some `seconds`.

    Repeats epochs as needed. The clock starts after the first batch, so that the start of worker
    processes is not counted.
    """
    began, num_images = 0.0, 0
    while True:
        for batch in make_batches():
            images, _ = (part.to(device) for part in batch)
            if not began:
                wait_for(device)
                began = time.perf_counter()
                continue
            num_images += len(images)
            if time.perf_counter() - began >= seconds:
                wait_for(device)  # until the batches still in its queue are done
                return num_images / (time.perf_counter() - began)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def machine() -> dict[str, str]:
    """Describe the machine on which the figures were measured."""
    cuda = torch.cuda.is_available()
    capabilities = torch.cpu.get_capabilities()
    processor = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    units = [name for name in BF16_UNITS if capabilities.get(name)]
    return {
        "processor": " with ".join([str(processor), *units[:1]]),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if cuda else "none",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.system(),
    }
