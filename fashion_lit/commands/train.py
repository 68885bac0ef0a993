"""Train, validate and test one classifier, or several in a multirun; one run directory each.

    fashion-lit train model=report_cnn optimizer=adamw optimizer.lr=1e-3
    fashion-lit train run_dir=runs/2026-11-22_14-03-07-123456_report_cnn  # resume this run
    fashion-lit train -m optimizer.lr=0.1,0.2 data.batch_size=128,256 sweep_name=lr_batch_size

`api.launch` starts both, `training.run` runs one training, `sweeps.launch` a multirun.
"""

import argparse
import sys
from collections.abc import Sequence

import hydra
import yaml

from fashion_lit.api.launch import prepare, start_run, start_sweep
from fashion_lit.config.compose import (
    compose_jobs,
    hydra_errors_for_users,
    replaced_settings,
    with_teachers_in_list,
)
from fashion_lit.config.flags import SettingsParser
from fashion_lit.config.groups import CONF_DIR, SWEEP
from fashion_lit.errors import RunError, Stopped, UserError, with_exit_codes
from fashion_lit.parts.kinds import look_up
from fashion_lit.runs.signals import StopSignals

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # of Hydra's --info


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
    sweep = f"{SWEEP}="
    multirun = args.multirun or any(text.lstrip("+").startswith(sweep) for text in args.overrides)
    shows = [name for name in ("help", "cfg", "info") if getattr(args, name)]
    if len(shows) > 1:
        raise UserError(f"Expected one of --{' and --'.join(shows)}, but got both.")
    if shows and multirun:
        raise UserError(
            f"`--{shows[0]}` shows one configuration; leave out -m, and give each setting one "
            "value."
        )
    overrides = prepare(args.overrides, args.config_dir, multirun=multirun)
    if shows:
        show(args, overrides)
        return 0
    if multirun:
        jobs = start_sweep(overrides, arguments, signals)
        return 0 if all(job.is_finished for job in jobs) else 1
    start_run(overrides, signals)
    return 0


def show_settings(overrides: Sequence[str], package: str | None) -> None:
    """Print a configuration, or a group of it, some of whose settings Hydra does not know to drop.

    A class that is named by its import path replaces them.
    """
    (settings,) = compose_jobs(overrides, multirun=False)
    shown = look_up(settings, package) if package else settings
    header = f"# @package {package}\n" if package else ""
    print(header + yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")


def show(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Let Hydra print what its flags --help, --cfg or --info ask for."""
    flags = ["--help"] if args.help else [f"--info={args.info}"] if args.info else []
    if args.cfg:
        flags = [f"--cfg={args.cfg}", *(["--resolve"] if args.resolve else [])]
        flags += [f"--package={args.package}"] if args.package else []
    if args.cfg == "job" and replaced_settings(overrides):
        show_settings(overrides, args.package)
        return
    before = sys.argv
    sys.argv = [before[0], *flags, *with_teachers_in_list(overrides)]
    try:
        task = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
        task(lambda _: None)()
    finally:
        sys.argv = before
