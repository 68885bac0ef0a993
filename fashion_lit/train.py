"""Train, validate and test one classifier, or a multirun of them; leave a run directory each.

    fashion-lit train model=report_cnn optimizer=adamw optimizer.lr=1e-3
    fashion-lit train run_dir=runs/2026-11-22_14-03-07-123456_report_cnn  # go on with this one
    fashion-lit train -m optimizer.lr=0.1,0.2 data.batch_size=128,256 sweep_name=lr_batch_size

To read: `run_job` and `carry_out` handle one run's fate, `train` is the run.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import lightning as L
import torch
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import setbase
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fashion_lit.build import build_classifier, build_datamodule, build_trainer
from fashion_lit.callbacks import RunLogger
from fashion_lit.config import (
    CONF_DIR,
    LOCATION_KEYS,
    compose_jobs,
    job_name,
    model_name,
    name_jobs,
    parse_override,
    prepare_overrides,
    to_plain,
)
from fashion_lit.device import peak_memory
from fashion_lit.errors import UserError
from fashion_lit.quiet import silence_known_messages
from fashion_lit.resuming import (
    CHECKPOINT_VARIABLE,
    Restart,
    open_run,
    settle_config,
    sound_best,
    told_restart,
)
from fashion_lit.run_directory import RunDirectory, State, quote_command
from fashion_lit.schema import Config, check
from fashion_lit.stopping import Stopped, StopSignals
from fashion_lit.terminal import (
    print_end,
    print_finished,
    print_restart,
    print_start,
    print_sweep_end,
)


class JobFailedError(Exception):
    """A job of a multirun has failed and has said so; the others go on, and the exit code is 1."""


def main(arguments: list[str]) -> int:
    """Run `fashion-lit train ARGUMENTS`.

    Returns the exit code: 0, all done; 1, a run failed; 2, the configuration is wrong and nothing
    was built; 128 + the signal's number, it was stopped (130 for Ctrl-C, 143 for SIGTERM).
    """
    parser = get_args_parser()
    args = parser.parse_args(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to here
    setbase("1.3")
    try:
        with StopSignals() as signals:
            return launch(args, parser, arguments, signals)
    except (UserError, HydraException) as error:
        print(f"fashion-lit train: {error}", file=sys.stderr)
        return 2
    except JobFailedError:
        return 1
    except Stopped as stop:
        # Lightning kills the first process of a run when another one ends with an error.
        return stop.exit_code if is_first_process() else 0
    except SystemExit as stop:
        return int(stop.code or 0)


def launch(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    signals: StopSignals,
) -> int:
    """Check all configurations of a command, then let Hydra start its jobs; returns 0."""
    args.overrides = prepare_overrides(args.overrides)
    config: Config | None = None  # of a single run; a multirun has one for each job
    sweep_dir: Path | None = None
    if not (args.cfg or args.help or args.hydra_help or args.info or args.shell_completion):
        jobs = compose_jobs(args.overrides, multirun=args.multirun)
        if args.multirun:
            for job in jobs:
                check(job)
            args.overrides += name_jobs(args.overrides, jobs[0]["sweep_name"])
            sweep_dir = Path(jobs[0]["output_root"], "sweeps", jobs[0]["sweep_name"]).absolute()
        else:
            config, more = settle_config(jobs[0], args.overrides)
            args.overrides += more
        check_mode(args.overrides, jobs, multirun=args.multirun)

    def task(composed: DictConfig) -> float:
        return run_job(composed, config, signals)

    try:
        _run_hydra(args, parser, task, config_path=str(CONF_DIR), config_name="train")
    except Stopped:
        if sweep_dir:
            print(f"To continue the sweep: {sweep_command(arguments, sweep_dir.name)}")
        raise
    finally:
        if sweep_dir:
            print_sweep_end(sweep_dir)
    return 0


def sweep_command(arguments: Sequence[str], name: str) -> str:
    """Return the command that goes on with a sweep."""
    given = [text for text in arguments if not text.startswith("sweep_name=")]
    return quote_command("fashion-lit", "train", *given, f"sweep_name={name}")


def check_mode(overrides: Sequence[str], jobs: Sequence[Config], *, multirun: bool) -> None:
    """Raise UserError for what only one run can do, or only a multirun."""
    given = {parse_override(text).key_or_group for text in overrides}
    if multirun and "run_dir" in given:
        raise UserError(
            "`run_dir` is the place of one run; name a multirun by sweep_name=NAME, and its place "
            "by output_root=DIR."
        )
    if not multirun and "sweep_name" in given:
        raise UserError("`sweep_name` names a multirun; add -m, or use run_dir=DIR for one run.")
    devices = [job["trainer"].get("devices", "auto") for job in jobs]
    if multirun and any(value != 1 and value != "1" for value in devices):
        raise UserError(
            "Expected `trainer.devices` to be 1 in a multirun, since the second process of a run "
            "would start the whole sweep again; start these runs one by one."
        )


def run_job(composed: DictConfig, config: Config | None, signals: StopSignals) -> float:
    """Do what Hydra asks for: one run, in the directory it chose; returns its val/accuracy."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        name = job_name(settings.job.override_dirname)
        print(f"\n=== job {settings.job.num + 1}: {name}", flush=True)
    try:
        if config is None:
            config = to_plain(composed)
            check(config)
            config = {key: value for key, value in config.items() if key not in LOCATION_KEYS}
        run = RunDirectory(Path(settings.runtime.output_dir))
        if not is_first_process():  # a process of a run that another one has opened
            return train(config, run, told_restart(run, config), signals)["val/accuracy"]
        with run.lock():
            return carry_out(config, run, signals, settings.mode)
    except UserError as error:
        print(f"fashion-lit train: {error}", file=sys.stderr)
        _fail(settings.mode, code=2)


def carry_out(
    config: Config, run: RunDirectory, signals: StopSignals, mode: RunMode | None
) -> float:
    """Begin a run or go on with it, and record how it ends; returns its val/accuracy."""
    restart = open_run(run, config)
    if restart is None:
        print_finished(run)
        return run.metrics["val/accuracy"]
    os.environ[CHECKPOINT_VARIABLE] = str(restart.checkpoint or "")
    try:
        metrics = train(config, run, restart, signals)
    except Stopped as stop:
        record_status(run, "interrupted", stop.name)
        status = run.status
        print(
            f"\nStopped by {stop.name} after {status['epoch']} whole epochs and "
            f"{status['step']:,} steps. To continue:\n  {run.resume_command}",
            flush=True,
        )
        raise
    except Exception as error:
        reason = describe(error)
        record_status(run, "failed", reason)
        print(f"fashion-lit train: {reason}\nThe run in {run.path} failed.", file=sys.stderr)
        _fail(mode, code=1)
    finally:
        signals.wait_for_a_good_moment = False
    record_status(run, "finished")
    run.previous_checkpoint.unlink(missing_ok=True)  # it has served
    return metrics["val/accuracy"]


def _fail(mode: RunMode | None, *, code: int) -> NoReturn:
    """End a single run's process; in a multirun, let Hydra go on with the next job."""
    if mode == RunMode.MULTIRUN:
        raise JobFailedError from None
    sys.exit(code)


def describe(error: Exception) -> str:
    """Say in one sentence why a run failed; what nobody expected shows its traceback as well."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "Out of GPU memory; lower data.batch_size, data.eval_batch_size or data.image_size."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'while a file of the run was written'}."
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def record_status(run: RunDirectory, state: State, reason: str = "") -> None:
    """Write the run's last status, if that is still possible."""
    with suppress(OSError):  # on a full disk the reason stands on the screen
        run.write_status(state, reason=reason)


def is_first_process() -> bool:
    """Whether this process is rank 0 of its run."""
    return not getattr(rank_zero_only, "rank", 0)


def train(
    config: Config, run: RunDirectory, restart: Restart, signals: StopSignals
) -> dict[str, float]:
    """Fit, validate the best checkpoint, test it once if `test`, record; returns the metrics."""
    silence_known_messages()
    L.seed_everything(config["seed"], verbose=False)
    classifier = build_classifier(config)
    datamodule = build_datamodule(config, classifier)
    trainer, points = build_trainer(config, run, restart, signals)
    print_start(model_name(config), classifier, datamodule, trainer, run.path)
    print_restart(restart, trainer)

    trainer.fit(classifier, datamodule, ckpt_path=restart.checkpoint, weights_only=True)
    metrics = scalars(trainer, "train/") | peak_memory(trainer.strategy.root_device)

    best = sound_best(run)
    trainer.validate(classifier, datamodule, ckpt_path=best, verbose=False, weights_only=True)
    metrics |= scalars(trainer, "val/")
    metrics["best_epoch"] = torch.load(best, weights_only=True)["epoch"] + 1
    if config["test"]:
        trainer.test(classifier, datamodule, ckpt_path=best, verbose=False, weights_only=True)
        metrics |= scalars(trainer, "test/")

    metrics["seconds"] = points.seconds
    if trainer.is_global_zero:
        assert isinstance(trainer.logger, RunLogger)
        trainer.logger.experiment.close()
        run.write_metrics(metrics)
        print_end(classifier, trainer, run, metrics)
    return metrics


def scalars(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return the logged metrics whose names start with `prefix`, as plain numbers."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith(prefix)}
