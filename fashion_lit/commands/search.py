"""Search for good settings with Optuna; each trial is a run of a sweep and may be pruned.

fashion-lit search space=lr_batch_size sweep_name=first
fashion-lit search 'optimizer.lr=tag(log,interval(1e-2,1))' data.batch_size=64,128 --num-trials 30
fashion-lit search space=lr_batch_size sweep_name=first launcher=parallel

The same command continues a search, even while another process works on it: both share one study,
an SQLite file in the sweep's directory. Overrides with several values (Hydra's multirun syntax)
define the search space.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_lit.config.command_line import positive_integer
from fashion_lit.config.compose import compose_jobs, hydra_errors_for_users
from fashion_lit.config.flags import SettingsParser
from fashion_lit.config.groups import with_config_dirs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.parts.trust import trusting
from fashion_lit.runs.data_records import check_one_data_set
from fashion_lit.runs.signals import StopSignals
from fashion_lit.sweeps.launch import build_launcher, repeat_command, sweep_directory
from fashion_lit.sweeps.pruning import METRIC, PRUNERS, STUDY_FILE, load_study
from fashion_lit.sweeps.ranking import read_runs
from fashion_lit.sweeps.space import check_corners, read_space
from fashion_lit.sweeps.study import SAMPLERS, Trials, check_same_search
from fashion_lit.text import quote_command

if TYPE_CHECKING:
    import optuna


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit search ARGUMENTS`.

    Returns the exit code: 0 if the search is done, 1 if a trial failed.
    """
    parser = SettingsParser("search", __doc__)
    parser.add_argument(
        "--num-trials", type=positive_integer, default=20, help="total, including earlier trials"
    )
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--pruner", choices=PRUNERS, default="median")
    args = parser.parse(arguments)
    if args.help:
        parser.print_help()
        return 0
    with StopSignals() as signals, hydra_errors_for_users():
        return launch(args, arguments, signals)


def launch(args: argparse.Namespace, arguments: Sequence[str], signals: StopSignals) -> int:
    """Open the study, run its trials and return the exit code."""
    if find_spec("optuna") is None:
        raise UserError('Expected Optuna, but it is not installed: pip install -e ".[search]"')
    typed = with_config_dirs(args.overrides, args.config_dir)
    space, fixed = read_space(typed)
    (base,) = compose_jobs(prepare_overrides(fixed), multirun=False)
    with trusting(base["plugins"]):
        return search(args, space, fixed, arguments, signals)


def search(
    args: argparse.Namespace,
    space: "dict[str, optuna.distributions.BaseDistribution]",
    fixed: Sequence[str],
    arguments: Sequence[str],
    signals: StopSignals,
) -> int:
    """Check the search, run its trials and return the exit code.

    Args:
        args: the parsed command line.
        space: the distribution of each searched setting.
        fixed: the overrides that all trials share.
        arguments: the command line as typed.
        signals: watched for a request to stop.
    """
    config = check_corners(space, fixed)
    launcher = build_launcher(config)
    launcher.check([config])
    sweep_dir = sweep_directory(config)
    sweep_dir.mkdir(parents=True, exist_ok=True)
    study = load_study(sweep_dir / STUDY_FILE, args.pruner)
    check_same_search(study, space, fixed)
    check_one_data_set((str(run.path), run.data) for run in read_runs(sweep_dir))
    trials = Trials(
        study,
        space,
        fixed,
        sweep_dir,
        num_trials=args.num_trials,
        sampler=args.sampler,
        pruner=args.pruner,
        seed=config["seed"],
    )
    try:
        launcher.run(trials, signals)
    finally:
        print_end(study, sweep_dir, repeat_command("search", arguments, sweep_dir.name))
    return 1 if trials.any_failed else 0


def print_end(study: "optuna.Study", sweep_dir: Path, command: str) -> None:
    """Print the number of trials per state, the best trial, and the next commands."""
    counts = Counter(trial.state.name.lower() for trial in study.trials)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    print(f"\n{len(study.trials)} trials: {states}")
    if counts["complete"]:
        best = study.best_trial
        settings = ", ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best: trial_{best.number:04}, {METRIC} {best.value:.4f}, {settings}")
    print(
        f"\n  compare:   {quote_command('fashion-lit', 'leaderboard', str(sweep_dir))}\n"
        f"  continue:  {command}\n"
        f"  dashboard: optuna-dashboard sqlite:///{(sweep_dir / STUDY_FILE).as_posix()}",
        flush=True,
    )
