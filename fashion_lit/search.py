"""Search for good settings with Optuna; each trial is a run of a sweep, and may be pruned.

fashion-lit search space=lr_batch_size sweep_name=first
fashion-lit search 'optimizer.lr=tag(log,interval(1e-2,1))' data.batch_size=64,128 --num-trials 30
fashion-lit search space=lr_batch_size sweep_name=first launcher=parallel

The same command goes on with a search, also while another process works on it: both share one
study, an SQLite file in the sweep's directory. What is typed as for a multirun is searched.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from fashion_lit.build import build_launcher
from fashion_lit.config import SPACES, compose_jobs, expand, parse_override, prepare_overrides
from fashion_lit.errors import UserError
from fashion_lit.pruning import METRIC, PRUNERS, STUDY_FILE, load_study
from fashion_lit.run_directory import quote_command
from fashion_lit.schema import Config, check
from fashion_lit.stopping import Stopped, StopSignals
from fashion_lit.study import SAMPLERS, Trials, check_same_search
from fashion_lit.train import check_mode, repeat_command

if TYPE_CHECKING:
    import optuna

SPACE = "space"  # of conf/search/
LAUNCHERS = ("local", "parallel")


def main(arguments: list[str]) -> int:
    """Run `fashion-lit search ARGUMENTS`.

    Returns the exit code: 0, the search is done; 1, a trial failed; 2, the command is wrong;
    128 + the signal's number, it was stopped.
    """
    parser = argparse.ArgumentParser(
        prog="fashion-lit search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="space=NAME, key=value, key=interval(a,b)")
    parser.add_argument("--num-trials", type=int, default=20, help="in all, those before included")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--pruner", choices=PRUNERS, default="median")
    args = parser.parse_intermixed_args(arguments)
    try:
        with StopSignals() as signals:
            return launch(args, arguments, signals)
    except (UserError, HydraException) as error:
        print(f"fashion-lit search: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        return stop.exit_code


def launch(args: argparse.Namespace, arguments: Sequence[str], signals: StopSignals) -> int:
    """Open the study and run its trials; returns the exit code."""
    if find_spec("optuna") is None:
        raise UserError('Expected Optuna, but it is not installed: pip install -e ".[search]"')
    if args.num_trials < 1:
        raise UserError(f"Expected `--num-trials` to be at least 1, but got {args.num_trials}.")
    space, fixed = read_space(args.overrides)
    config = check_corners(space, fixed)
    launcher = build_launcher(config)
    launcher.check([config])
    sweep_dir = Path(config["output_root"], "sweeps", config["sweep_name"]).absolute()
    sweep_dir.mkdir(parents=True, exist_ok=True)
    study = load_study(sweep_dir / STUDY_FILE, args.pruner)
    check_same_search(study, space, fixed)
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


def read_space(
    overrides: Sequence[str],
) -> tuple[dict[str, "optuna.distributions.BaseDistribution"], list[str]]:
    """Return what is searched, by setting, and the overrides that all trials share."""
    prepared = prepare_overrides(expand(overrides, SPACE, SPACES))
    check_mode(prepared, multirun=True)
    parsed = [parse_override(text) for text in prepared]
    space = {o.key_or_group: distribution(o) for o in parsed if o.is_sweep_override()}
    if not space:
        raise UserError(
            "Expected something to search, such as space=lr_batch_size or "
            "'optimizer.lr=tag(log,interval(1e-2,1))', but every setting has one value."
        )
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    return space, [*fixed, "++test=false"]


def check_corners(
    space: Mapping[str, "optuna.distributions.BaseDistribution"], fixed: Sequence[str]
) -> Config:
    """Raise UserError unless runs can be built of the first values and of the last ones.

    Returns the configuration of the first.
    """
    corners = [[f"{key}={ends(values)[i]}" for key, values in space.items()] for i in (0, 1)]
    overrides = [[*fixed, *prepare_overrides(corner)] for corner in corners]
    first, last = (compose_jobs(corner, multirun=False)[0] for corner in overrides)
    for config in (first, last):
        check(config)
    name = first["launcher"]["name"]
    if name not in LAUNCHERS:
        raise UserError(
            f"Expected `launcher` to be one of {', '.join(LAUNCHERS)}, since a search learns from "
            f"each trial before the next, but got {name!r}; several cluster jobs may each run this "
            "command with the same sweep_name."
        )
    return first


def ends(space: "optuna.distributions.BaseDistribution") -> tuple[Any, Any]:
    """Return the first and the last value of what a setting is drawn from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(space, CategoricalDistribution):
        return space.choices[0], space.choices[-1]
    assert isinstance(space, FloatDistribution | IntDistribution)
    return space.low, space.high


def distribution(swept: Override) -> "optuna.distributions.BaseDistribution":
    """Return what Optuna draws a setting from, for Hydra's choice, range, interval and tag(log).

    Numbers of an interval are drawn from all of it, of int(interval(a,b)) as whole numbers;
    raises UserError for an interval that is empty, or logarithmic and not positive.
    """
    from optuna import distributions

    value = swept.value()
    try:
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return distributions.IntDistribution(value.start, value.end, log=log)
            return distributions.FloatDistribution(value.start, value.end, log=log)
        if isinstance(value, RangeSweep):
            numbers = [int(text) for text in swept.sweep_string_iterator()]
            step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
            return distributions.IntDistribution(numbers[0], numbers[-1], step=step)
        return distributions.CategoricalDistribution(list(swept.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(
            f"Expected `{swept.key_or_group}` to be a range that can be searched, but got "
            f"{str(swept.input_line).partition('=')[2]} ({error})."
        ) from None


def print_end(study: "optuna.Study", sweep_dir: Path, command: str) -> None:
    """Print how many trials ended how, the best one, and what to type next."""
    counts = Counter(trial.state.name.lower() for trial in study.trials)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    print(f"\n{len(study.trials)} trials: {told}")
    if counts["complete"]:
        best = study.best_trial
        settings = ", ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best: trial_{best.number:04}, {METRIC} {best.value:.4f}, {settings}")
    print(
        f"\n  compare:   {quote_command('fashion-lit', 'leaderboard', str(sweep_dir))}\n"
        f"  go on:     {command}\n"
        f"  dashboard: optuna-dashboard sqlite:///{(sweep_dir / STUDY_FILE).as_posix()}",
        flush=True,
    )
