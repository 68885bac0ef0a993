"""Train, validate and test one classifier, or a multirun of them; leave a run directory each.

    fashion-lit train model=report_cnn optimizer=adamw optimizer.lr=1e-3
    fashion-lit train run_dir=runs/2026-11-22_14-03-07-123456_report_cnn  # resume this one
    fashion-lit train -m optimizer.lr=0.1,0.2 data.batch_size=128,256 sweep_name=lr_batch_size

`training.run` is the run, `sweeps.launch` the multirun.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.version import setbase
from omegaconf import DictConfig

from fashion_lit.config.compose import (
    CONF_DIR,
    SWEEP,
    check_mode,
    compose_jobs,
    prepare_overrides,
)
from fashion_lit.errors import UserError
from fashion_lit.runs.signals import Stopped, StopSignals

# What needs torch is imported once Hydra has accepted the command: it takes seconds.


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
        from fashion_lit.training.run import is_first_process

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
    shows_only = args.cfg or args.help or args.hydra_help or args.info or args.shell_completion
    if shows_only:
        run_hydra(args, parser, lambda _: None)
        return 0
    check_mode(args.overrides, multirun=multirun)
    if multirun:
        compose_jobs(args.overrides, multirun=True)
        from fashion_lit.sweeps.launch import launch_sweep

        return launch_sweep(args.overrides, arguments, signals)
    (composed,) = compose_jobs(args.overrides, multirun=False)
    from fashion_lit.runs.directory import RunDirectory
    from fashion_lit.runs.resume import is_trained, settle_config
    from fashion_lit.sweeps.pruning import told_pruning
    from fashion_lit.training.device import check_devices
    from fashion_lit.training.run import run_job

    config, more = settle_config(composed, args.overrides)
    run = RunDirectory(Path(str(composed["run_dir"])))
    if not (run.exists and is_trained(run, config)):  # one that is tested takes what is there
        check_devices(config["trainer"], config["data"]["device"])
    args.overrides += more

    def task(_: DictConfig) -> None:
        run_job(config, Path(HydraConfig.get().runtime.output_dir), signals, told_pruning())

    run_hydra(args, parser, task)
    return 0


def run_hydra(
    args: argparse.Namespace, parser: argparse.ArgumentParser, task: Callable[[DictConfig], None]
) -> None:
    """Let Hydra show what it is asked for, or run the task."""
    _run_hydra(args, parser, task, config_path=str(CONF_DIR), config_name="train")
