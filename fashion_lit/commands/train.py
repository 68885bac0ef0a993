"""Train, validate and test one classifier, or several in a multirun; one run directory each.

    fashion-lit train model=report_cnn optimizer=adamw optimizer.lr=1e-3
    fashion-lit train run_dir=runs/2026-11-22_14-03-07-123456_report_cnn  # resume this run
    fashion-lit train -m optimizer.lr=0.1,0.2 data.batch_size=128,256 sweep_name=lr_batch_size

`training.run` runs one training, `sweeps.launch` a multirun.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra

from fashion_lit.config.compose import (
    compose_jobs,
    hydra_errors_for_users,
    replaced_settings,
    with_teachers_in_list,
)
from fashion_lit.config.flags import SettingsParser
from fashion_lit.config.groups import CONF_DIR, SWEEP, parse_override, with_config_dirs
from fashion_lit.config.overrides import prepare_overrides, split_jobs
from fashion_lit.config.settings import Config, differences, flatten
from fashion_lit.config.trainer import check_driver
from fashion_lit.config.typed import check_mode, check_names
from fashion_lit.errors import RunError, Stopped, UserError, with_exit_codes
from fashion_lit.parts.trust import trusting
from fashion_lit.runs.signals import StopSignals

# Importing torch takes seconds, so its users are imported after Hydra has accepted the command.

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # of Hydra's --info
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


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit train ARGUMENTS`.

    Returns the exit code: 0 if all is done; 1 if a run failed; 2 if the configuration is invalid
    and nothing was built; 128 + the signal's number if a signal stopped it.
    """
    args = parse(arguments)
    try:
        with StopSignals() as signals, hydra_errors_for_users():
            return launch(args, arguments, signals)
    except Stopped:
        from fashion_lit.training.run import is_first_process

        if is_first_process():
            raise
        return 0  # Lightning kills rank 0 when another rank exits with an error
    except RunError as failure:
        from fashion_lit.training.run import print_traceback_if_unexpected

        print_traceback_if_unexpected(failure.__cause__)
        print(f"fashion-lit train: {failure}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; except for --config-dir, its flags are those of Hydra that help."""
    parser = SettingsParser("train")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=INFO)
    args = parser.parse(arguments)
    for name in ("package", "resolve"):
        if getattr(args, name) and not args.cfg:
            raise UserError(f"`--{name}` only changes what --cfg prints; add --cfg job.")
    return args


def launch(args: argparse.Namespace, arguments: Sequence[str], signals: StopSignals) -> int:
    """Check the command's configurations, start its run or multirun, return the exit code."""
    typed = with_config_dirs(args.overrides, args.config_dir)
    multirun = args.multirun or any(text.lstrip("+").startswith(f"{SWEEP}=") for text in typed)
    overrides = prepare_overrides(typed)
    shows = [name for name in ("help", "cfg", "info") if getattr(args, name)]
    if len(shows) > 1:
        raise UserError(f"Expected one of --{' and --'.join(shows)}, but got both.")
    if shows and multirun:
        raise UserError(
            f"`--{shows[0]}` shows one configuration; leave out -m, and give each setting one "
            "value."
        )
    check_mode(overrides, multirun=multirun)
    check_names(overrides)
    if shows:
        show(args, overrides)
        return 0
    if multirun:
        (first,) = compose_jobs(split_jobs(overrides)[0], multirun=False)
        if first["launcher"].get("name") != "slurm":
            check_driver(first)
        from fashion_lit.sweeps.launch import launch_sweep

        with trusting(first["plugins"]):
            return launch_sweep(first, overrides, arguments, signals)
    (composed,) = compose_jobs(overrides, multirun=False)
    with trusting(composed["plugins"]):
        launch_run(composed, overrides, signals)
    return 0


def launch_run(composed: Config, overrides: Sequence[str], signals: StopSignals) -> None:
    """Start a run or resume it."""
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
    from fashion_lit.training.device import check_machine
    from fashion_lit.training.run import run_dir_of_first_process, run_job
    from fashion_lit.training.tensorboard import Hyperparameters

    composed |= run_dir_of_first_process()
    config, run_dir = resolve_run_config(composed, overrides)
    run = RunDirectory(run_dir.absolute())
    if not (run.exists and is_trained(run, config)):  # a trained run is tested on any device
        check_machine(config)
    values = flatten(config)
    first = chosen_settings(config, overrides) & values.keys()
    run_job(config, run, signals, [Hyperparameters(values, first), *pruning_from_environment()])


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


def show(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Let Hydra print what its flags --help, --cfg or --info ask for."""
    flags = ["--help"] if args.help else [f"--info={args.info}"] if args.info else []
    if args.cfg:
        flags = [f"--cfg={args.cfg}", *(["--resolve"] if args.resolve else [])]
        flags += [f"--package={args.package}"] if args.package else []
    before = sys.argv
    removed = [f"~{path}" for path in replaced_settings(overrides)]
    sys.argv = [before[0], *flags, *with_teachers_in_list(overrides), *removed]
    try:
        task = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
        task(lambda _: None)()
    finally:
        sys.argv = before
