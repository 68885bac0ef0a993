"""The probe of a training step: its wall time, its GPU time and the cost of small parts."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.tensorboard import SummaryWriter

from fashion_lit.benchmarking.baselines import PlainLoop
from fashion_lit.benchmarking.contenders import (
    MANY_EPOCHS,
    autocast_type,
    choose_kernels,
    load,
    plain_loop,
)
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.settings import Config
from fashion_lit.data.augment import Augment
from fashion_lit.data.batches import to_input
from fashion_lit.data.randomness import generator, seed_default_generators
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.data.types import Batch
from fashion_lit.evaluation.figures import pictures_figure
from fashion_lit.evaluation.tables import confusion_matrix_figure
from fashion_lit.models.build import build_classifier
from stopwatch import device_name, milliseconds, wait

NUM_PROFILED_STEPS = 20
NUM_PICTURES = 18


class Operations(TorchDispatchMode):
    """Counts ATen operations except views and allocations; each launches at least one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func.namespace == "aten" and not func.is_view and "empty" not in str(func)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Effort:
    """The numbers of repetitions, and the image size in pixels."""

    num_steps: int = 60
    num_batches: int = 50
    num_forward: int = 30
    num_drawings: int = 5
    image_size: int = 224


SMALL_EFFORT = Effort(num_steps=3, num_batches=2, num_forward=3, num_drawings=2, image_size=32)


def anatomy(*overrides: str, small: bool = False) -> dict[str, Any]:
    """Return the times of the parts of a bare loop over a configuration's batches."""
    effort = SMALL_EFFORT if small else Effort()
    (config,) = compose_jobs(prepare_overrides(list(overrides)), multirun=False)
    loop, batches = prepare(config)
    found: dict[str, Any] = {"batch": config["data"]["batch_size"]}
    found |= step_times(loop, batches, effort)
    batch = next(iter(batches))
    made = milliseconds(lambda: take(batches, effort.num_batches), 5)
    found["batch made ms"] = made / effort.num_batches
    forward = milliseconds(lambda: loop.network(batch[0]), effort.num_forward)
    found["forward ms"] = forward
    found |= part_times(effort)
    found["the two figures of an epoch that improves ms"] = drawing_time(effort)
    return found


def prepare(config: Config) -> tuple[PlainLoop, Iterable[Batch]]:
    """Build a bare loop of a configuration and its batches, both on the GPU, if any."""
    torch.manual_seed(0)
    choose_kernels(config)
    network = build_classifier(config).network.to(device_name()).train()
    batches = load(config, device_name()).train_dataloader()
    return plain_loop(config, network, MANY_EPOCHS, len(batches), autocast_type(config)), batches


def take(batches: Iterable[Batch], count: int) -> None:
    """Produce the first `count` batches of an epoch."""
    for _ in islice(batches, count):
        pass


def step_times(loop: PlainLoop, batches: Iterable[Batch], effort: Effort) -> dict[str, float]:
    """Return a step's wall time and operations, and on a GPU its busy time and kernels."""

    def steps(count: int) -> None:
        for batch in islice(batches, count):
            loop.step(batch)

    found = {"bare step ms": milliseconds(lambda: steps(effort.num_steps), 1) / effort.num_steps}
    with Operations() as operations:
        steps(1)
    found["operations a step"] = operations.count
    if device_name() == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            steps(NUM_PROFILED_STEPS)
            wait()
        cuda = torch.autograd.DeviceType.CUDA
        kernels = [event for event in profiler.events() if event.device_type == cuda]
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1000
        found["GPU busy ms a step"] = busy / NUM_PROFILED_STEPS
        found["kernels a step"] = len(kernels) / NUM_PROFILED_STEPS
    return found


def part_times(effort: Effort) -> dict[str, float]:
    """Return the times of seeding, augmentation and resizing."""
    device = device_name()
    images = torch.randint(0, 256, (128, 28, 28), dtype=torch.uint8, device=device)
    augment = Augment(shift=1)

    def microseconds(work: Callable[[], Any], num_repeats: int) -> float:
        return 1000 * milliseconds(work, num_repeats)

    def resize() -> None:
        to_input(images[:64], image_size=effort.image_size, normalize=False)

    size = f"64 images to {effort.image_size} px ms"
    found = {
        "seed_default_generators µs": microseconds(
            lambda: seed_default_generators(0, 2, 5, 7, 0), 100
        ),
        "generator µs": microseconds(lambda: generator(0, 1, 5, 7, device=device), 100),
        "augment µs": microseconds(lambda: augment(images, generator(0, device=device)), 30),
        size: milliseconds(resize, 20),
    }
    torch.use_deterministic_algorithms(True)
    try:
        found[f"{size}, deterministic"] = milliseconds(resize, 20)
    finally:
        torch.use_deterministic_algorithms(False)
    return found


def drawing_time(effort: Effort) -> float:
    """Return the milliseconds to draw the confusion matrix and the most confident mistakes."""
    confusion = torch.randint(0, 300, (10, 10)).float()
    images, labels = torch.randn(NUM_PICTURES, 28, 28), torch.randint(0, 10, (NUM_PICTURES,))
    probabilities = torch.randn(NUM_PICTURES, 10).softmax(1)
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:

        def draw() -> None:
            writer.add_figure("confusion", confusion_matrix_figure(confusion, CLASS_NAMES), 0)
            writer.add_figure(
                "pictures", pictures_figure(images, labels, probabilities, CLASS_NAMES), 0
            )

        return milliseconds(draw, effort.num_drawings)
