"""From a checked configuration to the objects: classifier, data module, Trainer, launcher."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor

from fashion_lit.augment import Augment
from fashion_lit.callbacks import (
    AverageStatistics,
    KeyedDropout,
    NoProfiler,
    RunLogger,
    SkipEmptyHooks,
    TrainingSpeed,
)
from fashion_lit.checkpoints import AtomicCheckpointIO, BestCheckpoint
from fashion_lit.classifier import ImageClassifier
from fashion_lit.config import flatten
from fashion_lit.datamodule import FashionMNISTDataModule
from fashion_lit.device import choose_precision, resolve_accelerator
from fashion_lit.fashion_mnist import CLASS_NAMES
from fashion_lit.launchers import Launcher
from fashion_lit.pruning import told_pruning
from fashion_lit.report import confusion_matrix_figure
from fashion_lit.report_figures import pictures_figure
from fashion_lit.restart_points import RestartPoints
from fashion_lit.resuming import Restart
from fashion_lit.run_directory import RunDirectory
from fashion_lit.schema import CLASSIFIERS, LAUNCHERS, SOURCES, Config, keyword_fields
from fashion_lit.stopping import StopSignals
from fashion_lit.tensorboard_pages import Norms, TensorBoardPages, ValidationPictures
from fashion_lit.terminal import TerminalTable


def build_classifier(config: Config) -> ImageClassifier:
    """Build the classifier that `model.name` chooses."""
    arguments = dict(config["model"])
    classifier = CLASSIFIERS[arguments.pop("name")]
    return classifier(**arguments, optimizer=config["optimizer"], scheduler=config["scheduler"])


def compile_network(classifier: ImageClassifier, config: Config) -> None:
    """Let torch.compile translate the network if `trainer.compile` says so, at its first batch.

    In place, so that checkpoints keep their names; true is torch's default mode.
    """
    if mode := config["trainer"].get("compile", False):
        classifier.network.compile(mode=None if mode is True else mode)


def build_datamodule(config: Config, classifier: ImageClassifier) -> FashionMNISTDataModule:
    """Build the data module over the images that `data.name` chooses; reads nothing yet."""
    arguments = dict(config["data"])
    source = SOURCES[arguments.pop("name")]
    source_arguments = {k: arguments.pop(k) for k in keyword_fields(source) if k in arguments}
    return FashionMNISTDataModule(
        source(**source_arguments),
        **arguments,
        num_channels=classifier.num_channels,
        augment=Augment(**config["augment"]),
        seed=config["seed"],
    )


def build_launcher(config: Config) -> Launcher:
    """Build what starts the jobs of a multirun."""
    arguments = dict(config["launcher"])
    return LAUNCHERS[arguments.pop("name")](**arguments)


def draw_confusions(confusion: Tensor) -> Figure:
    """Draw counts (10, 10), true classes in rows."""
    return confusion_matrix_figure(confusion, CLASS_NAMES)


def draw_pictures(images: Tensor, labels: Tensor, probabilities: Tensor) -> Figure:
    """Draw images (N, H, W) with their labels (N,) and what is said of them (N, 10)."""
    return pictures_figure(images, labels, probabilities, CLASS_NAMES)


def build_trainer(
    config: Config, run: RunDirectory, restart: Restart, signals: StopSignals
) -> tuple[L.Trainer, RestartPoints]:
    """Build Lightning's Trainer with everything that a run writes and shows."""
    arguments: dict[str, Any] = dict(config["trainer"])
    arguments.pop("compile", None)  # `compile_network` did it
    device_type = resolve_accelerator(arguments.get("accelerator", "auto"))
    precision, notice = choose_precision(arguments.pop("precision"), device_type)
    if notice:
        rank_zero_only(print)(notice)
    speed = TrainingSpeed()
    terminal = TerminalTable(speed, show_bar=arguments.pop("enable_progress_bar", True))
    points = RestartPoints(
        run.last_checkpoint,
        **config["checkpoint"],
        config=config,
        signals=signals,
        record=restart.record,
        on_save=lambda progress: run.write_status("running", progress=progress),
    )
    callbacks: list[L.Callback] = [
        SkipEmptyHooks(),
        points,
        KeyedDropout(config["seed"]),
        speed,
        AverageStatistics(),
        terminal,
        TensorBoardPages(flatten(config), draw_confusions),
        BestCheckpoint(
            run.checkpoint_dir,
            filename=run.best_checkpoint.stem,
            monitor="val/accuracy",
            mode="max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
    ]
    if config["tensorboard"]["pictures"]:
        callbacks.append(ValidationPictures(draw_confusions, draw_pictures))
    if every_steps := config["tensorboard"]["norms_every_steps"]:
        callbacks.append(Norms(every_steps))
    if patience := config["early_stopping"]["patience"]:
        callbacks.append(
            EarlyStopping(
                "val/accuracy", mode="max", patience=patience, check_on_train_epoch_end=True
            )
        )
    if pruning := told_pruning():
        callbacks.append(pruning)
    trainer = L.Trainer(
        **{"profiler": NoProfiler(), **arguments},
        precision=precision,  # pyright: ignore[reportArgumentType]
        enable_progress_bar=False,  # TerminalTable has a bar of its own
        default_root_dir=run.path,
        logger=RunLogger(run.path),
        enable_autolog_hparams=False,  # TensorBoardPages logs them, with their metrics
        use_distributed_sampler=False,  # every rank draws its own share already
        plugins=[AtomicCheckpointIO({run.last_checkpoint.name: run.previous_checkpoint.name})],
        callbacks=callbacks,
    )
    return trainer, points
