"""Check the settings of a run or a multirun, and start it in this process.

overrides = prepare(["optimizer.lr=0.1"], [], multirun=False)
with StopSignals() as signals:
directory = start_run(overrides, signals)
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import parse_override, with_config_dirs
from fashion_lit.config.overrides import prepare_overrides, split_jobs
from fashion_lit.config.settings import Config, differences, flatten
from fashion_lit.config.trainer import check_driver
from fashion_lit.config.typed import check_mode, check_names
from fashion_lit.errors import UserError
from fashion_lit.parts.trust import trusting
from fashion_lit.runs.signals import StopSignals
from fashion_lit.text import quote_command

# Importing torch takes seconds, so its users are imported after Hydra has accepted the settings.
if TYPE_CHECKING:
    from fashion_lit.sweeps.jobs import Job

# They number the processes of a run; here with their values in a run of one process.
RANK_VARIABLES = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "NODE_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "1",
}


def prepare(typed: Sequence[str], config_dirs: Sequence[str], *, multirun: bool) -> list[str]:
    """Return overrides in the form that Hydra composes; raises UserError for those it cannot be.

    Args:
        typed: overrides such as "optimizer.lr=0.1".
        config_dirs: directories with own configurations.
        multirun: an override may hold several values, each of them a job's.
    """
    overrides = prepare_overrides(with_config_dirs(typed, config_dirs))
    check_mode(overrides, multirun=multirun)
    check_names(overrides)
    return overrides


def start_sweep(
    overrides: Sequence[str], arguments: Sequence[str], signals: StopSignals
) -> "list[Job]":
    """Run the jobs of a multirun and return them; see `launch_sweep`."""
    (first,) = compose_jobs(split_jobs(overrides)[0], multirun=False)
    if first["launcher"].get("name") != "slurm":
        check_driver(first)
    from fashion_lit.sweeps.launch import launch_sweep

    with trusting(first["plugins"]):
        return launch_sweep(first, overrides, arguments, signals)


def start_run(
    overrides: Sequence[str], signals: StopSignals, *, may_start_others: bool = True
) -> Path:
    """Start a run or resume it; return its directory when it is finished.

    Args:
        overrides: as `prepare` returns them.
        signals: watched for a request to stop.
        may_start_others: a run of several processes may run this process's command in the others.

    Raises UserError before it begins, RunError if it fails, and Stopped on a signal.
    """
    (composed,) = compose_jobs(overrides, multirun=False)
    with trusting(composed["plugins"]):
        return _start(composed, overrides, signals, may_start_others=may_start_others)


def _start(
    composed: Config, overrides: Sequence[str], signals: StopSignals, *, may_start_others: bool
) -> Path:
    from fashion_lit.runs.directory import RunDirectory

    recorded = RunDirectory(Path(str(composed["run_dir"])))
    if not recorded.exists:
        check_driver(composed)
    elif not any(os.environ.get(name, value) != value for name, value in RANK_VARIABLES.items()):
        with recorded.lock():  # refuse a run that another process trains before torch is imported
            pass
    if composed["ckpt_path"] is None and not os.environ.get("FASHION_LIT_RUN_DIR"):
        config = recorded.config if recorded.exists and recorded.is_config_intact else composed
        ignore_foreign_ranks(config.get("trainer", {}))
    from fashion_lit.runs.resume import is_trained, resolve_run_config
    from fashion_lit.sweeps.pruning import pruning_from_environment
    from fashion_lit.training.build import with_available_devices
    from fashion_lit.training.device import check_machine
    from fashion_lit.training.run import run_dir_of_first_process, run_job
    from fashion_lit.training.tensorboard import Hyperparameters

    composed |= run_dir_of_first_process()
    config, run_dir = resolve_run_config(composed, overrides)
    run = RunDirectory(run_dir.absolute())
    if not (run.exists and is_trained(run, config)):  # a trained run is tested on any device
        check_machine(config)
    if not may_start_others:
        check_one_process(with_available_devices(config)[0], overrides)
    values = flatten(config)
    first = chosen_settings(config, overrides) & values.keys()
    run_job(config, run, signals, [Hyperparameters(values, first), *pruning_from_environment()])
    return run.path


def check_one_process(config: Config, overrides: Sequence[str]) -> None:
    """Raise UserError for a run of several processes, which Lightning starts by their command."""
    from fashion_lit.training.device import num_devices

    trainer = config["trainer"]
    strategy, num_nodes = trainer.get("strategy") or "auto", trainer.get("num_nodes", 1)
    if num_devices(trainer) * num_nodes > 1 or strategy != "auto":
        given = [text.lstrip("+") for text in overrides]
        raise UserError(
            "Expected one device and trainer.strategy=auto, because Python code trains in its own "
            f"process alone, but these settings use {num_devices(trainer) * num_nodes} and "
            f"{strategy}; type {quote_command('fashion-lit', 'train', *given)} instead."
        )


def chosen_settings(config: Config, overrides: Sequence[str]) -> set[str]:
    """Return the settings that were typed or that differ from the default run's, dotted keys."""
    (default,) = compose_jobs([], multirun=False)
    return {parse_override(o).key_or_group for o in overrides} | differences(default, config).keys()


def ignore_foreign_ranks(trainer: Any) -> None:
    """Remove variables that number the processes of a run from a run of one process.

    A shell or a cluster's job may have left them. Lightning reads them when it is imported.
    """
    if not isinstance(trainer, Mapping):
        return  # which is refused later
    if trainer.get("devices", 1) not in (1, "1", [0]) or trainer.get("num_nodes", 1) != 1:
        return
    given = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    if any(value != RANK_VARIABLES[name] for name, value in given.items()):
        for name in given:
            del os.environ[name]
        described = ", ".join(f"{name}={value}" for name, value in given.items())
        print(f"Ignoring {described}: this run has one process (trainer.devices=1).")
