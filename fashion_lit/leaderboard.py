"""Rank the runs of a sweep, which may still be running, and test the best one once.

fashion-lit leaderboard sweeps/lr_bs
fashion-lit leaderboard sweeps/lr_bs --metric val/loss --min
fashion-lit leaderboard sweeps/lr_bs --evaluate-best
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.files import read_text, write_atomically
from fashion_lit.sweeps.figures import draw_figures
from fashion_lit.sweeps.ranking import Entry, rank, read_runs, varied_settings
from fashion_lit.sweeps.tables import as_csv, make_row, markdown, trouble

TEST_RECORD = "test_opened.json"


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit leaderboard ARGUMENTS` and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="fashion-lit leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep_dir", type=Path, help="sweeps/NAME")
    parser.add_argument("--metric", default="val/accuracy", help="the metric to rank by")
    parser.add_argument("--min", action="store_true", help="rank the smallest value first")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="update it every SECONDS")
    parser.add_argument("--evaluate-best", action="store_true", help="test the best run, once")
    args = parser.parse_args(arguments)
    check_arguments(args)
    while True:
        entries = show(args.sweep_dir, args.metric, smallest_first=args.min)
        if not args.watch:
            break
        time.sleep(args.watch)
    return evaluate_best(args.sweep_dir, entries) if args.evaluate_best else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a missing sweep, a test metric, or contradicting flags."""
    if not args.sweep_dir.is_dir():
        raise UserError(
            f"Expected the directory of a sweep, sweeps/NAME, but there is no {args.sweep_dir}."
        )
    if args.metric.startswith("test/"):
        raise UserError(
            f"Expected a validation metric to rank by, but got {args.metric!r}; use "
            "--evaluate-best to open the test set once, for the best run."
        )
    if args.evaluate_best and args.watch:
        raise UserError(
            "`--watch` never ends, so --evaluate-best would not run; leave out one of them."
        )


def show(sweep_dir: Path, metric: str, *, smallest_first: bool) -> list[Entry]:
    """Print the leaderboard, write its files into the sweep's directory, return its entries."""
    runs = read_runs(sweep_dir)
    entries = rank(runs, metric, smallest_first=smallest_first)
    if not any(run.settings for run in runs):
        raise UserError(f"Expected runs in {sweep_dir}, but none of its directories holds one.")
    if not any(entry.metric for entry in entries):
        known = sorted({name for run in runs for name in run.metrics})
        if known:
            raise UserError(
                f"Expected a metric that runs record, but got {metric!r}; they record "
                f"{', '.join(name for name in known if name.count('/') < 2)}."
            )
    columns = varied_settings(entries)
    rows = [make_row(place, entry, columns) for place, entry in enumerate(entries, start=1)]
    table = markdown(rows, metric) + trouble(runs)
    print(table)
    write_atomically(sweep_dir / "leaderboard.md", table)
    write_atomically(sweep_dir / "leaderboard.csv", as_csv(rows))
    write_atomically(sweep_dir / "leaderboard.json", json.dumps(rows, indent=2) + "\n")
    draw_figures(sweep_dir, entries, columns, metric)
    return entries


def evaluate_best(sweep_dir: Path, entries: Sequence[Entry]) -> int:
    """Test the best entry's run closest to its mean, unless the test set was opened before.

    Returns the exit code. The result is recorded in `test_opened.json`.
    """
    record = sweep_dir / TEST_RECORD
    if record.exists():
        opened = json.loads(record.read_text(encoding="utf-8"))
        print(f"\nThe test set was opened before, for {opened['job']}: {opened['metrics']}")
        return 0
    best = entries[0]
    if not best.metric:
        raise UserError(f"Expected a finished run in {sweep_dir} to test, but there is none.")
    seed = sorted(best.metric, key=lambda s: (abs(best.metric[s] - best.mean), s))[0]
    (run,) = [r for r in best.runs if r.settings["seed"] == seed and r.metrics]
    override = f'run_dir="{run.path.absolute().as_posix()}"'
    command = [sys.executable, "-m", "fashion_lit", "train", override, "test=true"]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        metrics = json.loads(read_text(run.path / "metrics.json"))
        tested = {k: metrics[k] for k in ("test/accuracy", "test/loss")}
        opened = {"job": run.path.name, "metrics": tested, "candidates": len(entries)}
        write_atomically(record, json.dumps(opened, indent=2) + "\n")
    return code
