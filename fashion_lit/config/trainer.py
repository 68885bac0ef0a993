"""The arguments of `lightning.Trainer` that `trainer` accepts, with their types and bounds.

Lightning's annotations have no bounds, and it raises some errors only after a run has begun. This
table is stricter: what a run cannot do is refused before anything is built.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from fashion_lit.errors import UserError

# Trainer arguments that this project sets itself, and what to use instead.
OWN_TRAINER_KEYS = {
    "barebones": "trainer.enable_progress_bar=false",
    "callbacks": "the Python API",
    "default_root_dir": "run_dir=DIR",
    "enable_autolog_hparams": "TensorBoard's HPARAMS tab (always written)",
    "enable_checkpointing": "the run directory's checkpoints (always written)",
    "fast_dev_run": "debug=one_batch",
    "limit_predict_batches": "fashion-lit evaluate",
    "logger": "TensorBoard (always written)",
    "model_registry": "the run directory's checkpoints",
    "plugins": "precision= or trainer.strategy=",
    "use_distributed_sampler": "trainer.devices=N (each rank draws its own share)",
}
CompileMode = Literal["reduce-overhead", "max-autotune"]  # of torch.compile, beside its default
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
CLOCK = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")
MAX_NODES = 10_000
MAX_CPU_PROCESSES = 16  # on a machine with fewer cores

Share = Annotated[float, Field(gt=0, le=1)]
Batches = PositiveInt | Share  # a number of batches, or a share of an epoch


def check_clock(value: Any) -> Any:
    """Raise ValueError unless a value is a duration as DD:HH:MM:SS."""
    if not isinstance(value, str) or len(value) > 20 or not CLOCK.fullmatch(value):
        raise ValueError("a time as DD:HH:MM:SS")
    return value


Clock = Annotated[str, BeforeValidator(check_clock)]


class TimeUnits(BaseModel):
    """A duration, as the arguments of `datetime.timedelta`."""

    model_config = ConfigDict(extra="forbid")

    weeks: NonNegativeInt = 0
    days: NonNegativeInt = 0
    hours: NonNegativeInt = 0
    minutes: NonNegativeInt = 0
    seconds: NonNegativeInt = 0
    milliseconds: NonNegativeInt = 0
    microseconds: NonNegativeInt = 0


class TrainerSettings(BaseModel):
    """The settings in `trainer`; the defaults are Lightning's."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    accelerator: str = "auto"  # `training.device.check_devices` knows the choices
    strategy: str = "auto"
    devices: PositiveInt | Literal[-1, "auto"] | list[NonNegativeInt] | str = "auto"
    num_nodes: Annotated[int, Field(gt=0, le=MAX_NODES)] = 1
    precision: Literal[
        "auto", "tf32", "32-true", "16-mixed", "bf16-mixed", "64-true", "16-true", "bf16-true",
        64, 32, 16, "64", "32", "16", "bf16",
    ]  # fmt: skip
    max_epochs: PositiveInt
    min_epochs: PositiveInt | None = None
    max_steps: PositiveInt | Literal[-1] = -1
    min_steps: PositiveInt | None = None
    max_time: Clock | TimeUnits | None = None
    limit_train_batches: Batches | None = None
    limit_val_batches: Batches | None = None
    limit_test_batches: Batches | None = None
    overfit_batches: NonNegativeInt | Annotated[float, Field(ge=0, le=1)] = 0.0
    val_check_interval: Batches | Clock | TimeUnits | None = None
    check_val_every_n_epoch: PositiveInt | None = 1
    num_sanity_val_steps: NonNegativeInt | Literal[-1] | None = None
    log_every_n_steps: NonNegativeInt | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: NonNegativeFloat | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: NonNegativeInt = 0
    compile: bool | CompileMode = False  # not Lightning's


def check_trainer(trainer: Mapping[str, Any], num_batches: Mapping[str, int]) -> None:
    """Raise UserError for settings of `trainer` that are valid individually but not together.

    Args:
        trainer: settings that fit `TrainerSettings`.
        num_batches: the batches of "train", "val" and, if the run tests, "test", in one process.
    """
    check_processes(trainer)
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches") or 1.0
    whole = num_batches["train"]
    train_batches = min(whole, int(whole * limit) if isinstance(limit, float) else limit)
    check_lengths(trainer, -(-train_batches // trainer.get("accumulate_grad_batches", 1)))
    for split, count in num_batches.items():
        check_limit(trainer, f"limit_{split}_batches", count, split)
    for split in ("train", "val"):  # Lightning limits both by it
        check_limit(trainer, "overfit_batches", num_batches[split], split)
    check_validations(trainer, train_batches)
    if (
        trainer.get("compile") in get_args(CompileMode)
        and trainer.get("accumulate_grad_batches", 1) != 1
    ):
        raise UserError(
            f"Expected `trainer.accumulate_grad_batches` to be 1 with trainer.compile="
            f"{trainer['compile']}, but got {trainer['accumulate_grad_batches']}: CUDA graphs "
            "overwrite the gradients of the previous batch; use trainer.compile=true."
        )


def check_processes(trainer: Mapping[str, Any]) -> None:
    """Raise UserError for a strategy or a number of processes that this project cannot run."""
    strategy, devices = trainer.get("strategy", "auto"), trainer.get("devices", "auto")
    if str(strategy).startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise UserError(
            f"Expected `trainer.strategy` to be one that trains in this process, but got "
            f"{strategy!r}, whose results stay in its child processes; use ddp."
        )
    if strategy not in STRATEGIES:
        raise UserError(
            f"Expected `trainer.strategy` to be one of {', '.join(STRATEGIES)}, but got "
            f"{strategy!r}."
        )
    most = max(MAX_CPU_PROCESSES, os.cpu_count() or 1)
    if isinstance(devices, int) and devices > most:
        raise UserError(
            f"Expected `trainer.devices` to be at most {most} on this machine, but got {devices:,}."
        )


def check_driver(config: Mapping[str, Any]) -> None:
    """Raise UserError for a GPU on a machine that has no driver of one; does not import torch."""
    trainer, data = config.get("trainer"), config.get("data")
    wanted = trainer.get("accelerator") if isinstance(trainer, Mapping) else None
    on_gpu = isinstance(data, Mapping) and data.get("device") == "cuda"
    if (wanted in ("gpu", "cuda") or on_gpu) and not may_have_gpu():
        setting = (
            f"trainer.accelerator={wanted}" if wanted in ("gpu", "cuda") else "data.device=cuda"
        )
        raise UserError(
            f"Expected a GPU for {setting}, but this machine has no driver of one; use "
            f"{setting.partition('=')[0]}=auto to select an available device."
        )


def may_have_gpu() -> bool:
    """Return whether this machine may have a GPU that torch can use."""
    if sys.platform == "darwin" or Path("/dev/kfd").exists():  # Apple's or AMD's
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def check_lengths(trainer: Mapping[str, Any], steps_per_epoch: int) -> None:
    """Raise UserError for a shortest length of the run above its longest, or an empty one."""
    min_steps = (trainer.get("min_epochs") or 0) * steps_per_epoch
    if 0 < trainer.get("max_steps", -1) <= min_steps:
        raise UserError(
            f"Expected `trainer.max_steps` to be more than the {min_steps:,} steps of "
            f"trainer.min_epochs={trainer['min_epochs']}, but got {trainer['max_steps']:,}."
        )
    if trainer.get("min_steps") and (
        trainer.get("max_steps", -1) != -1
        or isinstance(trainer.get("val_check_interval"), str | dict)
    ):
        raise UserError(
            "Expected no `trainer.min_steps` with trainer.max_steps or a duration in "
            "trainer.val_check_interval; leave it out."
        )
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}", -1)
        if least is not None and most != -1 and least > most:
            raise UserError(
                f"Expected `trainer.min_{unit}` to be at most trainer.max_{unit}={most}, but got "
                f"{least}."
            )
    for key in ("max_time", "val_check_interval"):
        value = trainer.get(key)
        if isinstance(value, str | dict) and not 0 < seconds_of(value) < 1e9:
            raise UserError(
                f"Expected `trainer.{key}` to be a duration of 1 second to 30 years, but got "
                f"{value!r}."
            )


def seconds_of(duration: str | Mapping[str, int]) -> float:
    """Return the seconds of DD:HH:MM:SS, or of timedelta's arguments."""
    if isinstance(duration, str):
        found = CLOCK.fullmatch(duration)
        assert found is not None, "the schema has checked it"
        days, hours, minutes, seconds = map(int, found.groups())
        duration = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
    try:
        return timedelta(**duration).total_seconds()
    except OverflowError:
        return float("inf")


def check_limit(trainer: Mapping[str, Any], key: str, num_batches: int, split: str) -> None:
    """Raise UserError for a share of a split's batches that is less than one batch."""
    share = trainer.get(key)
    if isinstance(share, float) and share and int(num_batches * share) == 0:
        raise UserError(
            f"Expected `trainer.{key}` to be at least one of the {num_batches} {split} batches, "
            f"{1 / num_batches:.3g} of them, but got {share:g}."
        )


def check_validations(trainer: Mapping[str, Any], num_train_batches: int) -> None:
    """Raise UserError for intervals of validations at which there would be none."""
    num_epochs = trainer["max_epochs"]
    every_epochs = trainer.get("check_val_every_n_epoch", 1)
    interval = trainer.get("val_check_interval")
    if (every_epochs or 1) > num_epochs:
        raise UserError(
            "Expected `trainer.check_val_every_n_epoch` to be at most trainer.max_epochs="
            f"{num_epochs}, but got {every_epochs}: the best checkpoint is selected on validation "
            "images."
        )
    if every_epochs is None and not isinstance(interval, int | str | dict):
        raise UserError(
            "Expected `trainer.val_check_interval` to be a number of batches or a duration with "
            f"trainer.check_val_every_n_epoch=null, but got {interval}."
        )
    if isinstance(interval, str | dict) and trainer.get("min_epochs") == num_epochs:
        raise UserError(
            f"Expected `trainer.min_epochs` to be less than trainer.max_epochs={num_epochs} with "
            "a duration in trainer.val_check_interval; leave it out."
        )
    most = num_train_batches if every_epochs else num_train_batches * num_epochs
    if isinstance(interval, int) and interval > most:
        raise UserError(
            f"Expected `trainer.val_check_interval` to be at most the {most:,} training batches "
            f"of {'an epoch' if every_epochs else 'the run'}, but got {interval:,}."
        )


def check_plateau(trainer: Mapping[str, Any]) -> None:
    """Raise UserError unless every epoch that steps a plateau schedule has a validation."""
    if not trainer.get("check_val_every_n_epoch", 1):
        raise UserError(
            "Expected `trainer.check_val_every_n_epoch` to be a number with scheduler=plateau, "
            "which reads the validation loss at an epoch's end, but got null."
        )
    if isinstance(trainer.get("val_check_interval"), str | dict):
        raise UserError(
            "Expected `trainer.val_check_interval` to be a number with scheduler=plateau, which "
            f"reads the validation loss of every epoch, but got {trainer['val_check_interval']!r}."
        )
