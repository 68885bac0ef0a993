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

import lightning as L
import torch
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.version import setbase
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fashion_lit.build import (
    build_classifier,
    build_datamodule,
    build_launcher,
    build_trainer,
    compile_network,
    on_devices_here,
)
from fashion_lit.callbacks import RunLogger
from fashion_lit.config import (
    CONF_DIR,
    SWEEP,
    compose_jobs,
    model_name,
    parse_override,
    prepare_overrides,
)
from fashion_lit.device import keep_freed_memory, peak_memory
from fashion_lit.errors import UserError
from fashion_lit.pruning import Pruned
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
from fashion_lit.schema import Config
from fashion_lit.stopping import Stopped, StopSignals
from fashion_lit.sweep import Queue, plan_jobs
from fashion_lit.terminal import (
    print_end,
    print_finished,
    print_restart,
    print_start,
    print_sweep_end,
)

COMPILER_MODULES = ("torch._dynamo.", "torch._inductor.", "torch._functorch.", "triton.")


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
    """Check all configurations of a command, then start what it asks for; returns the exit code."""
    multirun = args.multirun or any(text.startswith(f"{SWEEP}=") for text in args.overrides)
    args.overrides = prepare_overrides(args.overrides)
    config: Config | None = None
    if not (args.cfg or args.help or args.hydra_help or args.info or args.shell_completion):
        check_mode(args.overrides, multirun=multirun)
        if multirun:
            return launch_sweep(args.overrides, arguments, signals)
        (composed,) = compose_jobs(args.overrides, multirun=False)
        config, more = settle_config(composed, args.overrides)
        args.overrides += more

    def task(_: DictConfig) -> None:
        assert config is not None
        run_job(config, Path(HydraConfig.get().runtime.output_dir), signals)

    _run_hydra(args, parser, task, config_path=str(CONF_DIR), config_name="train")
    return 0


def launch_sweep(overrides: Sequence[str], arguments: Sequence[str], signals: StopSignals) -> int:
    """Plan a multirun and run its jobs; returns the exit code."""
    # One moment names the sweep, whatever time it is when a job begins.
    first = compose_jobs(overrides, multirun=True)[0]
    sweep_dir = Path(first["output_root"], "sweeps", first["sweep_name"]).absolute()
    jobs = plan_jobs([*overrides, "++test=false"], sweep_dir)
    launcher = build_launcher(first)
    launcher.check([job.config for job in jobs])
    sweep_dir.mkdir(parents=True, exist_ok=True)
    queue = Queue(jobs)
    repeat = repeat_command("train", arguments, sweep_dir.name)
    try:
        launcher.run(queue, signals)
    except Stopped:
        print(f"To continue the sweep:\n  {repeat}")
        raise
    finally:
        print_sweep_end(sweep_dir, [job.run for job in jobs])
    print(f"To go on with it, or to add jobs:\n  {repeat}")
    return 1 if queue.failed else 0


def repeat_command(command: str, arguments: Sequence[str], name: str) -> str:
    """Return what to type to go on with a sweep or a search."""
    given = [text for text in arguments if not text.startswith("sweep_name=")]
    return quote_command("fashion-lit", command, *given, f"sweep_name={name}")


def check_mode(overrides: Sequence[str], *, multirun: bool) -> None:
    """Raise UserError for what only one run can do, or only a multirun."""
    given = {o.key_or_group: o for o in map(parse_override, overrides)}
    if multirun and "run_dir" in given:
        raise UserError(
            "`run_dir` is the place of one run; name a multirun by sweep_name=NAME, and its place "
            "by output_root=DIR."
        )
    if not multirun and "sweep_name" in given:
        raise UserError("`sweep_name` names a multirun; add -m, or use run_dir=DIR for one run.")
    for key in given:
        if not multirun and key.split(".")[0] == "launcher":
            raise UserError(f"`{key}` is about how a multirun starts its jobs; add -m.")
        if multirun and key.startswith(("hydra/", "hydra.")):
            raise UserError(
                f"`{key}` has no effect on a multirun, whose jobs are processes of their own; "
                "how they start is chosen by launcher=local, parallel or slurm."
            )
    if multirun and "test" in given and given["test"].value() is not False:
        raise UserError(
            "Expected `test` to be false in a multirun: jobs compare on validation images, and "
            "the test set is opened once, for the best."
        )


def run_job(config: Config, run_dir: Path, signals: StopSignals) -> None:
    """Do one run, new or stopped, in its directory."""
    run = RunDirectory(run_dir)
    if not is_first_process():  # a process of a run that another one has opened
        train(config, run, told_restart(run, config), signals)
        return
    with run.lock():
        carry_out(config, run, signals)


def carry_out(config: Config, run: RunDirectory, signals: StopSignals) -> None:
    """Begin a run or go on with it, and record how it ends."""
    restart = open_run(run, config)
    if restart is None:
        print_finished(run)
        return
    os.environ[CHECKPOINT_VARIABLE] = str(restart.checkpoint or "")
    try:
        train(config, run, restart, signals)
    except Stopped as stop:
        record_status(run, "interrupted", stop.name)
        status = run.status
        print(
            f"\nStopped by {stop.name} after {status['epoch']} whole epochs and "
            f"{status['step']:,} steps. To continue:\n  {run.resume_command}",
            flush=True,
        )
        raise
    except Pruned as decision:
        record_status(run, "pruned", str(decision))
        print(f"\nPruned by the search {decision}.", flush=True)
        return
    except Exception as error:
        reason = describe(error)
        record_status(run, "failed", reason)
        print(f"fashion-lit train: {reason}\nThe run in {run.path} failed.", file=sys.stderr)
        sys.exit(1)
    finally:
        signals.wait_for_a_good_moment = False
    record_status(run, "finished")
    run.previous_checkpoint.unlink(missing_ok=True)  # it has served


def describe(error: Exception) -> str:
    """Say in one sentence why a run failed; what nobody expected shows its traceback as well."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "Out of GPU memory; lower data.batch_size, data.eval_batch_size or data.image_size."
    if type(error).__module__.startswith(COMPILER_MODULES):
        cause = getattr(error, "inner_exception", error)
        return (
            "Expected torch.compile to work, as trainer.compile asks, but it failed: "
            f"{type(cause).__name__}; a C++ compiler is needed (on a GPU, Triton too), else leave "
            "trainer.compile=false."
        )
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


def train(config: Config, run: RunDirectory, restart: Restart, signals: StopSignals) -> None:
    """Fit, validate the best checkpoint, test it once if `test`, record."""
    silence_known_messages()
    keep_freed_memory()
    config, notice = on_devices_here(config)  # one that is trained was refused by now
    if notice:
        print(notice)
    L.seed_everything(config["seed"], verbose=False)
    classifier = build_classifier(config)
    compile_network(classifier.network, config)
    datamodule = build_datamodule(config, classifier)
    trainer, points = build_trainer(config, run, restart, signals)
    print_start(model_name(config), classifier, datamodule, trainer, run.path)
    print_restart(restart, trainer)

    trainer.fit(classifier, datamodule, ckpt_path=restart.checkpoint, weights_only=True)
    metrics = scalars(trainer, "train/") | peak_memory(trainer.strategy.root_device)

    best, best_epoch = sound_best(run)
    trainer.validate(classifier, datamodule, ckpt_path=best, verbose=False, weights_only=True)
    metrics |= scalars(trainer, "val/")
    metrics["best_epoch"] = best_epoch
    if config["test"]:
        trainer.test(classifier, datamodule, ckpt_path=best, verbose=False, weights_only=True)
        metrics |= scalars(trainer, "test/")

    metrics["seconds"] = points.seconds
    if trainer.is_global_zero:
        assert isinstance(trainer.logger, RunLogger)
        trainer.logger.experiment.close()
        run.write_metrics(metrics)
        print_end(classifier, trainer, run, metrics)


def scalars(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return the logged metrics whose names start with `prefix`, as plain numbers."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith(prefix)}
