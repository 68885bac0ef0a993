"""One side of a comparison each: a run as users run it, a bare loop, the reports' own loop.

    # steps a second:
    lightning_steps(effort, configure(effort, "experiment=report_b"), num_steps=20)

`contests` sets them side by side.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from fashion_lit.build import (
    build_classifier,
    build_datamodule,
    build_trainer,
    compile_network,
)
from fashion_lit.classifier import ImageClassifier
from fashion_lit.config import LOCATION_KEYS, compose_jobs, prepare_overrides
from fashion_lit.datamodule import Batch, FashionMNISTDataModule, TrainBatches
from fashion_lit.device import MIXED_BF16, MIXED_FP16, choose_precision, resolve_accelerator
from fashion_lit.optimization import OPTIMIZERS, SCHEDULERS
from fashion_lit.peers import NUM_WARM_UP_STEPS, loader, train_plainly, wait_for
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
    given = [f"data={effort.data}", "test=false", "trainer.enable_progress_bar=false"]
    given += [*overrides, *effort.overrides]
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


@contextmanager
def built_run(
    effort: Effort, config: Config
) -> Iterator[tuple[L.Trainer, ImageClassifier, FashionMNISTDataModule]]:
    """Build all that a run of a configuration needs, in a directory of its own; it tells nobody."""
    with tempfile.TemporaryDirectory(dir=effort.root) as folder, redirect_stdout(StringIO()):
        run = RunDirectory(Path(folder) / "run")
        run.path.mkdir()
        run.create(config)
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
    precision, _ = choose_precision(config["trainer"]["precision"], device.type)
    autocast = {MIXED_BF16: torch.bfloat16, MIXED_FP16: torch.float16}.get(precision)
    return recipe_steps(config, network, datamodule.train_dataloader(), num_steps, autocast)


def recipe_steps(
    config: Config,
    network: nn.Module,
    batches: TrainBatches | DataLoader[Batch],
    num_steps: int,
    autocast: torch.dtype | None,
) -> float:
    """Return the steps per second of a plain loop with a configuration's optimizer and schedule."""
    settings = dict(config["optimizer"])
    optimizer = OPTIMIZERS[settings.pop("name")](network, **settings)
    settings = dict(config["scheduler"])
    build = SCHEDULERS[settings.pop("name")]
    schedule = build(optimizer, MANY_EPOCHS * len(batches), MANY_EPOCHS, **settings)
    return train_plainly(
        network,
        lambda: batches,
        optimizer,
        schedule["scheduler"] if schedule else None,
        num_steps=num_steps,
        label_smoothing=config["model"]["label_smoothing"],
        autocast=autocast,
    )


def plain_steps(
    effort: Effort, config: Config, num_steps: int, transform: str, num_workers: int
) -> float:
    """Return the steps per second of the recipe in float32, over torchvision's images."""
    device = torch.device(resolve_accelerator(config["trainer"]["accelerator"]))
    network = build_classifier(config).network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    batches = loader(effort.root, transform, config["data"]["batch_size"], num_workers)
    return recipe_steps(config, network.to(device), batches, num_steps, autocast=None)
