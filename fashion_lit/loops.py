"""One side of a comparison each: a run as users run it, a bare loop, the reports' own loop.

    # steps a second:
    lightning_steps(effort, configure(effort, "experiment=report_b"), num_steps=20)

`contests` sets them side by side.
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

from fashion_lit.build import (
    build_classifier,
    build_datamodule,
    build_trainer,
    compile_network,
)
from fashion_lit.classifier import ImageClassifier
from fashion_lit.config import LOCATION_KEYS, compose_jobs, prepare_overrides
from fashion_lit.datamodule import Batch, FashionMNISTDataModule
from fashion_lit.device import MIXED_BF16, MIXED_FP16, choose_precision, resolve_accelerator
from fashion_lit.errors import UserError
from fashion_lit.optimization import OPTIMIZERS, SCHEDULERS
from fashion_lit.peers import NUM_WARM_UP_STEPS, PlainLoop, loader, wait_for
from fashion_lit.resuming import Restart
from fashion_lit.run_directory import RunDirectory
from fashion_lit.schema import Config, check
from fashion_lit.stopping import StopSignals

MANY_EPOCHS = 100  # for schedules that want to know their end


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        data: "fashion_mnist" or "synthetic".
        num_rounds: that count.
        seconds: of each side of a round, where images are counted.
        num_steps: of each side of a round, where steps are.
        num_seeds: whole runs of this project's recipe.
        num_peer_seeds: whole runs of the report's.
        overrides: of all runs that train, as `fashion-lit train` takes them.
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
    """Compose a run's configuration."""
    given = [f"data={effort.data}", "test=false", *overrides, *effort.overrides]
    (config,) = compose_jobs(prepare_overrides(given), multirun=False)
    check(config)
    return {key: value for key, value in config.items() if key not in LOCATION_KEYS}


def load(effort: Effort, *overrides: str) -> FashionMNISTDataModule:
    """Return the data module of a configuration, with its images."""
    config = configure(effort, *overrides)
    datamodule = build_datamodule(config, build_classifier(config))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


class StepClock(L.Callback):
    """Takes the time of the last epoch's steps, after as many that warm up as in a bare loop."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == NUM_WARM_UP_STEPS:
            wait_for(pl_module.device)
            self.began = time.perf_counter()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if trainer.is_last_batch:
            wait_for(pl_module.device)
            self.ended = time.perf_counter()


def lightning_steps(
    effort: Effort, config: Config, num_steps: int, *, without: tuple[type[L.Callback], ...] = ()
) -> float:
    """Return the steps per second of a run's second epoch: logs, metrics, checkpoints and all.

    Callbacks of the kinds `without` are left out.
    """
    num_batches = NUM_WARM_UP_STEPS + num_steps
    trainer_settings = {"max_epochs": 2, "limit_train_batches": num_batches, "limit_val_batches": 1}
    config = config | {"trainer": config["trainer"] | trainer_settings}
    with built_run(effort, config) as (trainer, classifier, datamodule):
        clock = StepClock()
        kept = [callback for callback in trainer.callbacks if not isinstance(callback, without)]  # type: ignore[attr-defined]
        trainer.callbacks = [*kept, clock]  # type: ignore[attr-defined]
        trainer.fit(classifier, datamodule)
    return num_steps / (clock.ended - clock.began)


class Screen(StringIO):
    """Swallows what is written, as a terminal: what draws for people draws here too."""

    @override
    def isatty(self) -> bool:
        return True


@contextmanager
def built_run(
    effort: Effort, config: Config
) -> Iterator[tuple[L.Trainer, ImageClassifier, FashionMNISTDataModule]]:
    """Build all that a run of a configuration needs, in a directory of its own, on no screen."""
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
        compile_network(classifier, config)
        datamodule = build_datamodule(config, classifier)
        trainer, _ = build_trainer(config, run, Restart(), StopSignals())
        yield trainer, classifier, datamodule
        trainer.logger.experiment.close()  # type: ignore[union-attr]


def bare_steps(config: Config, num_steps: int) -> float:
    """Return the steps per second of a loop that does nothing but train, on the same batches."""
    classifier = build_classifier(config)
    compile_network(classifier, config)
    datamodule = build_datamodule(config, classifier)
    datamodule.prepare_data()
    datamodule.setup()
    device = torch.device(resolve_accelerator(config["trainer"]["accelerator"]))
    datamodule.tensor_device = device
    datamodule.train = type(datamodule.train)(*(part.to(device) for part in datamodule.train))
    network = classifier.network.to(device)
    batches = datamodule.train_dataloader()
    loop = plain_loop(config, network, MANY_EPOCHS, len(batches), autocast_type(config))
    return loop.steps_per_second(batches, num_steps)


def autocast_type(config: Config) -> torch.dtype | None:
    """Return the 16-bit type that a configuration computes in; None: float32."""
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
    """Return a plain loop with a configuration's loss, optimizer and schedule."""
    settings = dict(config["optimizer"])
    optimizer = OPTIMIZERS[settings.pop("name")](network, **settings)
    settings = dict(config["scheduler"])
    num_steps = num_epochs * steps_per_epoch
    schedule = SCHEDULERS[settings.pop("name")](optimizer, num_steps, num_epochs, **settings)
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
    """Return the steps per second of the recipe in float32, over torchvision's images."""
    batches = loader(effort.root, transform, config["data"]["batch_size"], num_workers)
    network = network_as_reported(config)
    loop = plain_loop(config, network, MANY_EPOCHS, len(batches), autocast=None)
    return loop.steps_per_second(batches, num_steps)


def network_as_reported(config: Config) -> nn.Module:
    """Build a configuration's network on its device, in PyTorch's own memory layout."""
    network = build_classifier(config).network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.to(resolve_accelerator(config["trainer"]["accelerator"]))


def plain_seconds_until(effort: Effort, target: float, *overrides: str) -> tuple[float, bool]:
    """Train report B's recipe as the report did: a plain loop over torchvision's images.

    Split and 16-bit type are the configuration's. Returns the seconds until the validation accuracy
    is `target`, or until the end, and whether it was reached.
    """
    config = configure(effort, "experiment=report_b", *overrides)
    if config["scheduler"]["name"] in ("step", "plateau"):
        raise UserError(
            "Expected a schedule that a plain loop steps after every batch, but got "
            f"scheduler={config['scheduler']['name']}; leave report B its own."
        )
    data = load(effort, "experiment=report_b", *overrides)
    load_images = partial(loader, effort.root, "report B, 28 px", data.batch_size, 2)
    train = load_images(indices=data.train_indices.tolist())
    validation = load_images(indices=data.val_indices.tolist(), shuffle=False)
    torch.manual_seed(config["seed"])
    torch.backends.cudnn.benchmark = config["trainer"]["benchmark"]
    network = network_as_reported(config)
    num_epochs = config["trainer"]["max_epochs"]
    loop = plain_loop(config, network, num_epochs, len(train), autocast_type(config))
    return loop.seconds_until(target, train, validation, num_epochs)
