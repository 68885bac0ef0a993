"""Measure contenders side by side: in turn, in one process, and by medians.

    rates = alternate({"ours": measure_ours, "peer": measure_peer}, num_rounds=5)

Machines are shared and drift, so only ratios of the same round mean anything.
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
        part: of the benchmark.
        what: was measured.
        unit: "images/s" or "steps/s", or "s" where fewer are better.
        ours: this project's figures, one a round or a seed.
        peer: the other side's, its best variant's; [] if there is none.
        peer_name: what it is.
        note: what else to know, or "".
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
        """Both sides in one figure, NaN for none: means of seconds, medians of rates."""
        average = statistics.mean if self.unit == "s" else statistics.median
        return average(self.ours), average(self.peer) if self.peer else math.nan

    @property
    def ratio(self) -> float:
        """How many times as fast this project is: the median over rounds; of seconds, the means'.

        NaN without a peer.
        """
        if self.unit == "s":
            ours, peer = self.middles
            return peer / ours
        return statistics.median(o / p for o, p in zip(self.ours, self.peer, strict=True))

    @property
    def extra_milliseconds(self) -> float:
        """What one unit costs here more than there, in milliseconds: the median over rounds.

        NaN where seconds are compared.
        """
        if self.unit == "s":
            return math.nan
        pairs = zip(self.ours, self.peer, strict=True)
        return statistics.median(1000 / o - 1000 / p for o, p in pairs)


def alternate(
    contenders: Mapping[str, Callable[[], float]], num_rounds: int
) -> dict[str, list[float]]:
    """Return each contender's rates, one a round; a first round warms up and does not count.

    Every second round goes the other way round, so that none is always the first.
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
    """Undo what is set inside for the whole process: how torch chooses its kernels.

    Lightning's Trainer sets it by `benchmark` and `deterministic`, this project by `precision`.
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
    """Return the name of the fastest by its median."""
    return max(rates, key=lambda name: statistics.median(rates[name]))


def images_per_second(
    make_batches: Callable[[], Iterable[Batch]], seconds: float, device: torch.device
) -> float:
    """Count images that arrive on `device`, for some seconds, over as many epochs as it takes.

    The clock starts at the first batch: starting worker processes is not counted.
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
                wait_for(device)  # for the batches that it was asked for and has not made yet
                return num_images / (time.perf_counter() - began)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
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
