"""Run one training: build, fit, evaluate, record the metrics, and handle how it ends."""

import os
import re
import traceback
from collections.abc import Sequence
from contextlib import suppress

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from fashion_lit.config.settings import Config, network_name, resume_command
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.errors import RunError, Stopped, UserError
from fashion_lit.models.build import build_classifier
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.resumability import inexact_parts
from fashion_lit.runs.data_records import check_same_data, describe_data, is_known_by_settings
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.initial_weights import load_initial_weights
from fashion_lit.runs.logger import RunLogger
from fashion_lit.runs.lost_files import RESTORE, restore_data
from fashion_lit.runs.records import State
from fashion_lit.runs.resume import (
    CHECKPOINT_VARIABLE,
    RUN_DIR_VARIABLE,
    Restart,
    find_best,
    is_done,
    open_run,
    restart_from_environment,
)
from fashion_lit.runs.signals import StopSignals
from fashion_lit.runs.teachers import copies_in, records_of_sources
from fashion_lit.training.build import (
    build_datamodule,
    build_trainer,
    compile_network,
    with_available_devices,
)
from fashion_lit.training.device import peak_memory, reset_peak_memory, tune_malloc
from fashion_lit.training.process import silence_known_messages
from fashion_lit.training.terminal import (
    print_early_end,
    print_end,
    print_finished,
    print_parts,
    print_restart,
    print_start,
    print_teachers,
)

NO_MEMORY = re.compile(r"allocate memory|not enough memory|Storage size calculation overflowed")
COMPILERS = {"_dynamo", "_functorch", "_inductor", "triton"}  # modules that torch.compile uses


class Pruned(BaseException):
    """The search stopped this run early. A BaseException, because it is not an error."""


def run_job(
    config: Config,
    run: RunDirectory,
    signals: StopSignals,
    more_callbacks: Sequence[L.Callback] = (),
) -> None:
    """Run a new training or resume a stopped one.

    Raises Stopped on a signal, and RunError if the run begins and fails.
    """
    if not is_first_process():  # the first process has locked and opened the run
        train(config, run, restart_from_environment(run, config), signals, more_callbacks)
        return
    # Before a new run's directory is made, and while that of another is locked.
    datamodule = None if run.exists else load_recorded_data(config, run)
    with run.lock():
        if run.exists:
            datamodule = load_recorded_data(config, run)
        run_and_record(config, run, signals, more_callbacks, datamodule)


def run_and_record(
    config: Config,
    run: RunDirectory,
    signals: StopSignals,
    more_callbacks: Sequence[L.Callback],
    datamodule: FashionMNISTDataModule | None,
) -> None:
    """Start or resume a run in its first process, and record how it ends."""
    restart = open_run(run, config)
    if restart is None:
        print_finished(run)
        return
    os.environ[RUN_DIR_VARIABLE] = str(run.path)
    os.environ[CHECKPOINT_VARIABLE] = str(restart.checkpoint or "")
    try:
        train(config, run, restart, signals, more_callbacks, datamodule)
    except Stopped as stop:
        record_status(run, "interrupted", stop.name)
        status = run.status
        print(
            f"\nStopped by {stop.name} after {status['epoch']} complete epochs and "
            f"{status['step']:,} steps. To resume:\n  {resume_command(run.path, config)}",
            flush=True,
        )
        raise
    except Pruned as pruned:
        record_status(run, "pruned", str(pruned))
        print(f"\nPruned by the search {pruned}.", flush=True)
        return
    except Exception as error:
        reason = describe(error)
        record_status(run, "failed", reason)
        raise RunError(f"{reason}\nThe run in {run.path} failed.") from error
    finally:
        signals.defer_stop = False
        del os.environ[RUN_DIR_VARIABLE], os.environ[CHECKPOINT_VARIABLE]
    record_status(run, "finished")
    for path in (run.previous_checkpoint, *copies_in(run, config)):  # only needed to resume
        path.unlink(missing_ok=True)


def load_recorded_data(config: Config, run: RunDirectory) -> FashionMNISTDataModule | None:
    """Load a run's data if the run or its sources have recorded them, and compare them.

    Nothing of the run is changed yet, except that a lost data.json is restored. Returns None if
    nothing is recorded or left to do, or if the settings alone decide what the data are. Raises
    UserError if the data were changed.
    """
    recorded = restore_data(run) if run.exists else None
    if is_known_by_settings(config) or (run.exists and is_done(run, config)):
        return None
    own = {f"the run in {run.path}": (recorded, RESTORE)}
    records = own if run.exists else records_of_sources(config)
    if not any(record for record, _ in records.values()):
        return None
    datamodule = build_datamodule(with_available_devices(config)[0])
    datamodule.prepare_data()
    datamodule.setup()
    for owner, (record, remedy) in records.items():
        if record is not None:
            check_same_data(record, describe_data(datamodule), owner, remedy)
    return datamodule


def describe(error: Exception) -> str:
    """Return one sentence on why a run failed."""
    return known_reason(error) or f"{type(error).__name__}: {error}"


def print_traceback_if_unexpected(error: BaseException | None) -> None:
    """Print the traceback of an error for which there is no `known_reason`."""
    if isinstance(error, Exception) and known_reason(error) is None:
        traceback.print_exception(error)


def known_reason(error: Exception) -> str | None:
    """Return one sentence on why a run failed; None for an unexpected error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "Out of GPU memory; lower data.batch_size, data.eval_batch_size or data.image_size."
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return (
            "Out of memory; lower data.batch_size, data.eval_batch_size, data.image_size or the "
            "network's size."
        )
    if COMPILERS & set(type(error).__module__.split(".")):
        cause = getattr(error, "inner_exception", error)
        return (
            "Expected torch.compile to work for trainer.compile, but it failed: "
            f"{type(cause).__name__}; install a C++ compiler (on a GPU also Triton) or set "
            "trainer.compile=false."
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'while writing a file of the run'}."
    return None


def record_status(run: RunDirectory, state: State, reason: str = "") -> None:
    """Write the run's final status; ignore OSError."""
    with suppress(OSError):  # on a full disk the reason is at least printed
        run.write_status(state, reason=reason)


def run_dir_of_first_process() -> dict[str, str]:
    """Return {"run_dir": …} in a process that the run's first process started, else {}."""
    run_dir = os.environ.get(RUN_DIR_VARIABLE)
    return {} if is_first_process() or run_dir is None else {"run_dir": run_dir}


def is_first_process() -> bool:
    """Return whether this process is rank 0 of its run."""
    return not getattr(rank_zero_only, "rank", 0)


def train(
    config: Config,
    run: RunDirectory,
    restart: Restart,
    signals: StopSignals,
    more_callbacks: Sequence[L.Callback],
    datamodule: FashionMNISTDataModule | None = None,
) -> None:
    """Build a run's objects, fit and evaluate them, and write the metrics.

    `datamodule` is the run's, if its images are loaded already.
    """
    silence_known_messages()
    tune_malloc()
    # Changes the devices only for a test: a training without its devices was refused earlier.
    config, device_notice = with_available_devices(config)
    if device_notice:
        print(device_notice)
    datamodule = datamodule or build_datamodule(config)
    inexact = inexact_parts(config, datamodule.source)
    L.seed_everything(config["seed"], verbose=False)
    classifier = build_classifier(config, datamodule.class_names, datamodule.channels)
    notice = ""
    if restart.checkpoint is None and config.get("init_from") is not None:
        notice = load_initial_weights(classifier, config)
    compile_network(classifier.network, config)
    trainer, resume_checkpoints = build_trainer(config, run, restart, signals, more_callbacks)
    reset_peak_memory(trainer.strategy.root_device)
    print_start(network_name(config), classifier, datamodule, trainer, run.path)
    print_restart(restart, trainer, notice)
    print_parts(config, inexact)
    print_teachers(run, config)
    assert isinstance(trainer.logger, RunLogger)
    try:
        metrics = fit_and_evaluate(trainer, classifier, datamodule, config, run, restart)
    finally:
        trainer.logger.close()  # a resume in this process replaces the file
    metrics["seconds"] = resume_checkpoints.seconds
    if trainer.is_global_zero:
        run.write_metrics(metrics)
        print_end(classifier, trainer, run, metrics)


def fit_and_evaluate(
    trainer: L.Trainer,
    classifier: ImageClassifier,
    datamodule: FashionMNISTDataModule,
    config: Config,
    run: RunDirectory,
    restart: Restart,
) -> dict[str, float]:
    """Fit, validate the best checkpoint, test it if `test`, and return the metrics."""
    trainer.fit(classifier, datamodule, ckpt_path=restart.checkpoint, weights_only=True)
    print_early_end(classifier, trainer)
    metrics = scalars(trainer, "train/") | peak_memory(trainer.strategy.root_device)

    best, best_epoch = find_best(run)
    trainer.validate(classifier, datamodule, ckpt_path=best, verbose=False, weights_only=True)
    metrics |= scalars(trainer, "val/")
    metrics["val/num_images"] = float(classifier.val_metrics.compute()["confusion"].sum())
    metrics["best_epoch"] = best_epoch
    if config["test"]:
        trainer.test(classifier, datamodule, ckpt_path=best, verbose=False, weights_only=True)
        metrics |= scalars(trainer, "test/")
    return metrics


def scalars(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return the logged metrics whose names start with `prefix`, as floats."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith(prefix)}
