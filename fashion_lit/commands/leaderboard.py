"""Rank the runs of a sweep or a folder, which may still be running, and test the best one once.

fashion-lit leaderboard sweeps/lr_bs
fashion-lit leaderboard runs
fashion-lit leaderboard sweeps/lr_bs --metric val/loss
fashion-lit leaderboard sweeps/lr_bs --evaluate-best
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fashion_lit.api.rank import check_folder, runs_to_rank
from fashion_lit.config.command_line import CommandParser, add_plugins, positive_number
from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.files import write_atomically
from fashion_lit.parts.kinds import check_trusted_parts
from fashion_lit.parts.trust import plugins_override, trusted_plugins, trusting
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.records import read_object
from fashion_lit.sweeps.figures import draw_figures
from fashion_lit.sweeps.ranking import (
    Entry,
    RunSummary,
    is_less_better,
    rank,
    varied_settings,
)
from fashion_lit.sweeps.tables import as_csv, make_rows, markdown, trouble
from fashion_lit.text import command_for_process, quote_value

TEST_RECORD = "test_opened.json"


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit leaderboard ARGUMENTS` and return the exit code."""
    parser = CommandParser("leaderboard", __doc__)
    parser.add_argument("sweep_dir", type=Path, help="sweeps/NAME, or a folder of runs")
    parser.add_argument("--metric", default="val/accuracy", help="the metric to rank by")
    parser.add_argument("--min", action="store_true", help="less is better, of another metric")
    parser.add_argument("--max", action="store_true", help="more is better, of another metric")
    parser.add_argument("--watch", type=positive_number, metavar="SECONDS", help="repeat it")
    parser.add_argument("--evaluate-best", action="store_true", help="test the best run, once")
    add_plugins(parser)
    args = parser.parse_args(arguments)
    with trusting(args.plugins):
        return show_and_test(args)


def show_and_test(args: argparse.Namespace) -> int:
    """Show the leaderboard that a parsed command line asks for; return the exit code."""
    check_arguments(args)
    while True:
        entries = show(args.sweep_dir, args.metric, args)
        if not args.watch:
            break
        time.sleep(args.watch)
    return evaluate_best(args.sweep_dir, entries, args.metric) if args.evaluate_best else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a missing sweep, a test metric, or contradicting flags."""
    check_folder(args.sweep_dir, args.metric)
    if args.evaluate_best and args.watch:
        raise UserError(
            "`--watch` never ends, so --evaluate-best would not run; leave out one of them."
        )


def show(sweep_dir: Path, metric: str, args: argparse.Namespace) -> list[Entry]:
    """Print the leaderboard, write its files into the sweep's directory, return its entries."""
    runs = runs_to_rank(sweep_dir, metric)
    entries = rank(runs, metric, smallest_first=smallest_first(metric, args))
    columns = varied_settings(entries)
    rows = make_rows(entries, columns)
    texts = {
        "leaderboard.md": markdown(entries, columns, metric) + trouble(runs),
        "leaderboard.csv": as_csv(rows),
        "leaderboard.json": json.dumps(rows, indent=2) + "\n",
    }
    width = shutil.get_terminal_size(fallback=(0, 0)).columns  # 0: no terminal
    print(markdown(entries, columns, metric, width) + trouble(runs))
    for name, text in texts.items():
        write_atomically(sweep_dir / name, text)
    figures = draw_figures(sweep_dir, entries, columns, metric)
    print(f"Written to {sweep_dir.absolute()}: {', '.join([*texts, *figures])}", flush=True)
    return entries


def evaluate_best(sweep_dir: Path, entries: Sequence[Entry], metric: str) -> int:
    """Test the best entry's run closest to its mean, unless the test set was opened before.

    Returns the exit code. `test_opened.json` records the run before it is tested, so that a command
    that is killed, or fails, tests the same run when it is repeated.
    """
    record = sweep_dir / TEST_RECORD
    opened = read_opened(record)
    if opened is None:
        chosen = choose_run(sweep_dir, entries, metric)
        check_trusted_parts(RunDirectory(chosen.path).config)
        opened = {"job": chosen.path.name, "candidates": len(entries)}
        write_atomically(record, json.dumps(opened, indent=2) + "\n")
    elif "metrics" in opened:
        print(f"\nThe test set was opened before, for {opened['job']}: {opened['metrics']}")
        return 0
    run_dir = sweep_dir / str(opened["job"])
    override = f"run_dir={quote_value(run_dir.absolute().as_posix())}"
    plugins = plugins_override(trusted_plugins())
    command = command_for_process("train", override, "test=true", *plugins)
    code = subprocess.run(command, check=False).returncode
    if code:
        print(
            f"fashion-lit leaderboard: the test of {run_dir.name} did not end; the same command "
            f"tests it again. Delete {record} to choose another run.",
            file=sys.stderr,
        )
        return code
    metrics = RunDirectory(run_dir).metrics
    opened["metrics"] = {k: metrics[k] for k in ("test/accuracy", "test/loss")}
    write_atomically(record, json.dumps(opened, indent=2) + "\n")
    return 0


def read_opened(record: Path) -> dict[str, Any] | None:
    """Return what `test_opened.json` records, or None if there is no such file."""
    if not record.exists():
        return None
    try:
        opened = read_object(record)
        if not isinstance(opened.get("job"), str):
            raise UserError("it names no job")
    except UserError as error:
        raise UserError(
            f"Expected a record of the sweep's test in {record}, but it cannot be read ({error}); "
            "look which run has test metrics, and delete the file only if there is none."
        ) from None
    return opened


def choose_run(sweep_dir: Path, entries: Sequence[Entry], metric: str) -> RunSummary:
    """Return the run of the best entry whose metric is closest to the entry's mean."""
    best = entries[0]
    finished = [run for run in best.runs if metric in run.metrics]
    if not finished:
        raise UserError(f"Expected a finished run in {sweep_dir} to test, but there is none.")
    return min(finished, key=lambda r: (abs(r.metrics[metric] - best.mean), r.settings["seed"]))


def smallest_first(metric: str, args: argparse.Namespace) -> bool:
    """Return whether less is better; raises UserError if the flags contradict it or are missing."""
    known = is_less_better(metric)
    if args.min and args.max:
        raise UserError("Expected one of --min and --max, but got both.")
    if known is None and not (args.min or args.max):
        raise UserError(
            f"Expected --min or --max with --metric {metric}, of which neither is always better."
        )
    if known is not None and (args.max if known else args.min):
        better = "less" if known else "more"
        raise UserError(
            f"Expected no {'--max' if known else '--min'} with --metric {metric}, of which "
            f"{better} is better."
        )
    return args.min if known is None else known
