"""The contenders of the benchmark: a complete run, a bare loop, and the course reports' loop.

    # steps per second:
    lightning_steps(effort, configure(effort, "experiment=report_b"), num_steps=20)

`throughput` and `whole_runs` compare them.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from typing_extensions import override

from fashion_lit.benchmarking.baselines import NUM_WARM_UP_STEPS, PlainLoop, loader
from fashion_lit.benchmarking.timing import wait_for
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.settings import LOCATION_KEYS, Config
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.types import Batch
from fashion_lit.errors import UserError
from fashion_lit.models.build import build_classifier
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.optimization import build_optimizer
from fashion_lit.models.schedules import build_schedule
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.resume import Restart
from fashion_lit.runs.signals import StopSignals
from fashion_lit.training.build import (
    build_datamodule,
    build_trainer,
    compile_network,
)
from fashion_lit.training.device import (
    MIXED_BF16,
    MIXED_FP16,
    check_devices,
    choose_precision,
    resolve_accelerator,
    set_tf32,
)
from fashion_lit.training.lightning_internals import TRICKS, LightningInternals

MANY_EPOCHS = 100  # the length given to schedulers that need the total number of steps


@dataclass(frozen=True)
class Effort:
    """How long to measure, and on which data.

    Args:
        data: "fashion_mnist" or "synthetic".
        num_rounds: the number of rounds that count, after the warm-up round.
        seconds: the duration of each measurement that counts images.
        num_steps: the length of each measurement that counts steps.
        num_seeds: the number of whole runs of this project's default recipe.
        num_peer_seeds: the number of whole runs of a course report's recipe.
        overrides: overrides of all training runs, as for `fashion-lit train`.
        root: a folder for temporary files.
    """

    data: str
    num_rounds: int
    seconds: float
    num_steps: int
    num_seeds: int
    num_peer_seeds: int
    overrides: tuple[str, ...]
    root: Path


def configure(effort: Effort, *overrides: str) -> Config:
    """Compose and check a run's configuration; raises UserError if it is invalid."""
    given = [f"data={effort.data}", "test=false", *overrides, *effort.overrides]
    (config,) = compose_jobs(prepare_overrides(given), multirun=False)
    config = check(config)
    check_devices(config["trainer"], config["data"]["device"])
    return {key: value for key, value in config.items() if key not in LOCATION_KEYS}


def load(config: Config, device: torch.device | str = "cpu") -> FashionMNISTDataModule:
    """Return the data module of a configuration, with its images on `device`."""
    datamodule = build_datamodule(config)
    datamodule.prepare_data()
    datamodule.setup()
    datamodule.move_to(torch.device(device))
    return datamodule


def device_of(config: Config) -> torch.device:
    """Return the device on which a configuration trains."""
    return torch.device(resolve_accelerator(config["trainer"]["accelerator"]))


class StepClock(L.Callback):
    """Measures the time of training steps, without the time between epochs.

    The first epoch is a warm-up and not timed. In each later epoch, timing starts after
    NUM_WARM_UP_STEPS steps, or before the last step of a shorter epoch.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.seconds = 0.0
        self._began: float | None = None

    @property
    def rate(self) -> float:
        """The steps per second so far."""
        return self.num_steps / self.seconds

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        last = int(trainer.num_training_batches) - 1
        if trainer.current_epoch > 0 and batch_idx == min(NUM_WARM_UP_STEPS, last):
            wait_for(pl_module.device)
            self._began = time.perf_counter()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if self._began is None:
            return
        self.num_steps += 1
        if trainer.is_last_batch:
            wait_for(pl_module.device)
            self.seconds += time.perf_counter() - self._began
            self._began = None


def lightning_steps(
    effort: Effort,
    config: Config,
    num_steps: int,
    *,
    without: tuple[type[L.Callback], ...] = (),
    without_trick: str = "",
) -> float:
    """Return the steps per second of a complete run, with logs, metrics and checkpoints.

    Times at least `num_steps` steps, in as many epochs as needed. Callbacks of the classes in
    `without` are left out, and so is `without_trick`, a name in `lightning_internals.TRICKS`.
    """
    num_batches = min(NUM_WARM_UP_STEPS + num_steps, len(load(config).train_dataloader()))
    num_timed = num_batches - min(NUM_WARM_UP_STEPS, num_batches - 1)  # of each epoch but the first
    trainer_settings = {
        "max_epochs": 1 + -(-num_steps // num_timed),
        "limit_train_batches": num_batches,
        "limit_val_batches": 1,
    }
    config = config | {"trainer": config["trainer"] | trainer_settings}
    with built_run(effort, config) as (trainer, classifier, datamodule):
        clock = StepClock()
        kept = [callback for callback in trainer.callbacks if not isinstance(callback, without)]  # type: ignore[attr-defined]
        for callback in kept:
            if isinstance(callback, LightningInternals):
                callback.tricks = tuple(name for name in TRICKS if name != without_trick)
        trainer.callbacks = [*kept, clock]  # type: ignore[attr-defined]
        trainer.fit(classifier, datamodule)
    return clock.rate


class Screen(StringIO):
    """Discards output but claims to be a terminal, so that tables and bars are drawn as usual."""

    @override
    def isatty(self) -> bool:
        return True


@contextmanager
def built_run(
    effort: Effort, config: Config
) -> Iterator[tuple[L.Trainer, ImageClassifier, FashionMNISTDataModule]]:
    """Build a trainer, model and data module in a temporary run directory; discard all output."""
    screen = Screen()
    with (
        tempfile.TemporaryDirectory(dir=effort.root) as folder,
        redirect_stdout(screen),
        redirect_stderr(screen),
    ):
        run = RunDirectory(Path(folder) / "run")
        run.path.mkdir()
        run.create(config)
        L.seed_everything(config["seed"], verbose=False)
        classifier = build_classifier(config)
        compile_network(classifier.network, config)
        datamodule = build_datamodule(config)
        trainer, _ = build_trainer(config, run, Restart(), StopSignals())
        yield trainer, classifier, datamodule
        trainer.logger.experiment.close()  # type: ignore[union-attr]


def bare_steps(config: Config, num_steps: int) -> float:
    """Return the steps per second of a loop that only trains, on the batches of a run."""
    choose_kernels(config)
    network = build_classifier(config).network
    compile_network(network, config)
    network.to(device_of(config))
    batches = load(config, device_of(config)).train_dataloader()
    loop = plain_loop(config, network, MANY_EPOCHS, len(batches), autocast_type(config))
    return loop.steps_per_second(batches, num_steps)


def choose_kernels(config: Config) -> None:
    """Set cudnn.benchmark and TF32 as a run does; `timing.kernels_restored` undoes it."""
    settings = config["trainer"]
    torch.backends.cudnn.benchmark = bool(settings.get("benchmark"))
    set_tf32(settings["precision"], resolve_accelerator(settings["accelerator"]))


def autocast_type(config: Config) -> torch.dtype | None:
    """Return the 16-bit dtype of a configuration's mixed precision, or None for float32."""
    settings = config["trainer"]
    device_type = resolve_accelerator(settings["accelerator"])
    precision, _ = choose_precision(settings["precision"], device_type)
    return {MIXED_BF16: torch.bfloat16, MIXED_FP16: torch.float16}.get(precision)


def plain_loop(
    config: Config,
    network: nn.Module,
    num_epochs: int,
    steps_per_epoch: int,
    autocast: torch.dtype | None,
) -> PlainLoop:
    """Build a plain loop with a configuration's loss, optimizer and learning rate schedule."""
    optimizer = build_optimizer(network, config["optimizer"])
    num_steps = num_epochs * steps_per_epoch
    schedule = build_schedule(optimizer, num_steps, num_epochs, config["scheduler"])
    return PlainLoop(
        network,
        optimizer,
        schedule["scheduler"] if schedule else None,
        label_smoothing=config["model"]["label_smoothing"],
        autocast=autocast,
    )


def plain_steps(
    effort: Effort, config: Config, num_steps: int, transform: str, num_workers: int
) -> float:
    """Return the steps per second of a recipe in a plain float32 loop over torchvision's images."""
    torch.backends.cudnn.benchmark = bool(config["trainer"].get("benchmark"))
    batches = loader(effort.root, transform, config["data"]["batch_size"], num_workers)
    network = network_as_reported(config)
    loop = plain_loop(config, network, MANY_EPOCHS, len(batches), autocast=None)
    return loop.steps_per_second(batches, num_steps)


def network_as_reported(config: Config) -> nn.Module:
    """Build a configuration's network on its device, in PyTorch's default memory layout."""
    network = build_classifier(config).network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.to(device_of(config))


def plain_seconds_until(effort: Effort, target: float, *overrides: str) -> tuple[float, bool]:
    """Train report B's recipe as the report did: in a plain loop over torchvision's images.

    The data split and the 16-bit dtype come from the configuration. Trains until the validation
    accuracy reaches `target`, or to the end. Returns the elapsed seconds and whether the target was
    reached. Raises UserError for schedulers that must not be stepped after every batch.
    """
    config = configure(effort, "experiment=report_b", *overrides)
    if config["scheduler"]["name"] in ("step", "plateau"):
        raise UserError(
            "Expected a scheduler that is stepped after every batch, but got "
            f"scheduler={config['scheduler']['name']}; do not override report B's scheduler."
        )
    data = load(config)
    load_images = partial(loader, effort.root, "report B, 28 px", data.batch_size, 2)
    train = load_images(indices=data.train_indices.tolist())
    validation = load_images(indices=data.val_indices.tolist(), shuffle=False)
    torch.manual_seed(config["seed"])
    choose_kernels(config)
    network = network_as_reported(config)
    num_epochs = config["trainer"]["max_epochs"]
    loop = plain_loop(config, network, num_epochs, len(train), autocast_type(config))
    return loop.seconds_until(target, train, validation, num_epochs)
