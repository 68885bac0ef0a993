"""Build classifier, data module, callbacks and Trainer from a checked configuration."""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fashion_lit.config.schema import source_of
from fashion_lit.config.settings import Config, flatten
from fashion_lit.data.augment import Augment
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.errors import UserError
from fashion_lit.files import event_files
from fashion_lit.parts.arguments import keyword_fields
from fashion_lit.parts.kinds import build_part, logger_places, named_parts, part_class
from fashion_lit.runs.checkpoints import AtomicCheckpointIO, BestCheckpoint
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.logger import RunLogger
from fashion_lit.runs.resume import Restart
from fashion_lit.runs.resume_checkpoints import ResumeCheckpoints
from fashion_lit.runs.signals import StopSignals
from fashion_lit.runs.teachers import copies_in
from fashion_lit.training.callbacks import DataRecord, KeyedDropout, Teaching, TrainingSpeed
from fashion_lit.training.device import (
    check_devices,
    choose_precision,
    num_devices,
    resolve_accelerator,
    set_tf32,
    timing_dependent_settings,
)
from fashion_lit.training.lightning_internals import LightningInternals
from fashion_lit.training.tensorboard import Norms, TensorBoardPages, ValidationPictures
from fashion_lit.training.terminal import TerminalTable


def with_available_devices(config: Config) -> tuple[Config, str]:
    """Return the configuration with devices of this machine, and a notice of a change, or ""."""
    trainer, data = config["trainer"], config["data"]
    try:
        check_devices(trainer, data["device"])
    except UserError:
        kind = resolve_accelerator("auto")
        available = {
            "trainer": trainer | {"accelerator": kind, "devices": 1},
            "data": data | {"device": "auto"},
        }
        notice = f"This machine lacks the run's devices; the run is evaluated on {kind} instead."
        return config | available, notice
    return config, ""


def compile_network(network: nn.Module, config: Config) -> None:
    """Compile a network in place with torch.compile if `trainer.compile` is set.

    torch compiles it at its first batch. In place, so that the checkpoint's keys stay the same;
    true selects torch's default mode.
    """
    if mode := config["trainer"].get("compile", False):
        network.compile(mode=None if mode is True else mode)


def build_datamodule(config: Config) -> FashionMNISTDataModule:
    """Build the data module for the source that `data` describes; reads no images yet."""
    source = source_of(config)
    exclude = {"name", "source", *keyword_fields(type(source))}
    arguments = {key: value for key, value in config["data"].items() if key not in exclude}
    augment = dict(config["augment"])
    if augment.get("own") is not None:
        augment["own"] = build_part("augment.own", augment["own"])
    return FashionMNISTDataModule(
        source,
        **arguments,
        augment=Augment(**augment, class_names=source.class_names),
        seed=config["seed"],
    )


def choose_strategy(config: Config) -> str:
    """Return Lightning's name of the strategy.

    DDP waits for a gradient of every weight that is trainable when it starts. A frozen backbone
    leaves some without one, so DDP then has to search for unused parameters in each step.
    """
    trainer = config["trainer"]
    strategy = trainer.get("strategy") or "auto"
    if not config["model"].get("freeze_backbone") or strategy not in ("auto", "ddp"):
        return strategy
    num_processes = num_devices(trainer) * trainer.get("num_nodes", 1)
    is_ddp = strategy == "ddp" or num_processes > 1
    return "ddp_find_unused_parameters_true" if is_ddp else strategy


def build_callbacks(config: Config, run: RunDirectory) -> list[L.Callback]:
    """Build the callbacks that log, display and keep the best epoch; `build_trainer` adds more."""
    speed = TrainingSpeed()
    callbacks: list[L.Callback] = [
        DataRecord(run),
        KeyedDropout(config["seed"]),
        speed,
        TerminalTable(speed, show_bar=config["trainer"].get("enable_progress_bar", True)),
        TensorBoardPages(),
        BestCheckpoint(
            run.checkpoint_dir,
            filename=run.best_checkpoint.stem,
            monitor="val/accuracy",
            mode="max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
    ]
    if teachers := copies_in(run, config):
        callbacks.append(Teaching(teachers, config.get("distillation") or {}))
    if config["tensorboard"]["pictures"]:
        callbacks.append(ValidationPictures())
    if every_steps := config["tensorboard"]["norms_every_steps"]:
        callbacks.append(Norms(every_steps))
    if patience := config["early_stopping"]["patience"]:
        callbacks.append(
            EarlyStopping(
                "val/accuracy", mode="max", patience=patience, check_on_train_epoch_end=False
            )
        )
    return callbacks


def trainer_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that the settings give; print notices of them."""
    arguments: dict[str, Any] = dict(config["trainer"])
    arguments.pop("compile", None)  # `compile_network` applies it
    arguments["strategy"] = choose_strategy(config)
    device_type = resolve_accelerator(arguments.get("accelerator", "auto"))
    requested = arguments["precision"]
    arguments["precision"], notice = choose_precision(requested, device_type)
    set_tf32(requested, device_type)
    if notice:
        rank_zero_only(print)(notice)
    if timed := timing_dependent_settings(config["trainer"], device_type):
        rank_zero_only(print)(
            f"{' and '.join(timed)} may select kernels by measured speed, so two runs may not be "
            "bit-identical."
        )
    return arguments | {
        "enable_progress_bar": False,  # this project draws its own
        "use_distributed_sampler": False,  # the data module already gives every rank its share
    }


def build_own_callbacks(config: Config) -> list[L.Callback]:
    """Build the callbacks that `callbacks` names by import path."""
    parts = config.get("callbacks") or {}
    return [build_part(f"callbacks.{key}", part) for key, part in parts.items()]


def build_own_loggers(config: Config, run: RunDirectory, events: RunLogger) -> list[Logger]:
    """Build the loggers that `loggers` names by import path; they write into the run's directory.

    A logger with a name to show, such as that of Weights & Biases, gets the run's. Its `id` is the
    same whenever the run resumes, so that it continues: it depends on the first file of `events`.
    """
    loggers: list[Logger] = []
    if not config.get("loggers"):
        return loggers
    _ = events.experiment  # creates its file
    first = min((path.name for path in event_files(run.path)), default="")
    identity = hashlib.sha256(f"{run.path.name} {first}".encode()).hexdigest()[:16]
    for key, part in config["loggers"].items():
        parameters = inspect.signature(part_class(f"loggers.{key}", part["name"])).parameters
        shown = {"run_name": run.path.name}
        if "name" in parameters and parameters["name"].default is None:
            shown["name"] = run.path.name
        places = logger_places(run.path.absolute() / key)
        logger = build_part(f"loggers.{key}", part, **places, id=identity, **shown)
        logger.log_hyperparams(flatten(config))
        loggers.append(logger)
    return loggers


def build_trainer(
    config: Config,
    run: RunDirectory,
    restart: Restart,
    signals: StopSignals,
    more_callbacks: Sequence[L.Callback] = (),
) -> tuple[L.Trainer, ResumeCheckpoints]:
    """Build Lightning's Trainer and logger; return the Trainer and its `ResumeCheckpoints`."""
    arguments = trainer_arguments(config)
    max_time = arguments.pop("max_time", None)
    resume_checkpoints = ResumeCheckpoints(
        run.last_checkpoint,
        **config["checkpoint"],
        config=config,
        signals=signals,
        record=restart.record,
        on_save=lambda progress: run.write_status("running", progress=progress),
        has_lost_lock=lambda: run.has_lost_lock,
    )
    logger = RunLogger(run.path)
    callbacks = [
        # The Trainer itself would put it last, but a stop has to be known to those below.
        *([Timer(max_time)] if max_time else []),
        LightningInternals(),
        resume_checkpoints,
        *build_callbacks(config, run),
        *more_callbacks,
        *build_own_callbacks(config),
    ]
    previous = {run.last_checkpoint.name: run.previous_checkpoint.name}
    try:
        trainer = L.Trainer(
            **arguments,
            default_root_dir=run.path,
            logger=[logger, *build_own_loggers(config, run, logger)],
            enable_autolog_hparams=False,  # TensorBoardPages logs them with their metrics
            plugins=[AtomicCheckpointIO(previous, needs_check=bool(named_parts(config)))],
            callbacks=callbacks,
        )
    except (MisconfigurationException, RuntimeError) as error:
        if not config.get("callbacks"):
            raise
        raise UserError(
            f"Expected `callbacks` that Lightning accepts together, but: {error}"
        ) from None
    logger.trainer = trainer
    return trainer, resume_checkpoints
