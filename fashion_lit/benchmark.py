"""Measure this project against the reports' way of doing the same, side by side.

fashion-lit benchmark                       all parts but records
fashion-lit benchmark data loop             some of them
fashion-lit benchmark --data synthetic --rounds 1 --seconds 0.1 --steps 2   does it run?

Both sides alternate in one process, a first round warms up, and medians of the rounds' ratios are
shown: how many times as fast this project is. Nothing else should run meanwhile.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fashion_lit.benchmarking.baselines import write_torchvision_files
from fashion_lit.benchmarking.contenders import Effort, configure, load
from fashion_lit.benchmarking.throughput import (
    measure_data,
    measure_inference,
    measure_loop,
    measure_train,
)
from fashion_lit.benchmarking.timing import Row, machine
from fashion_lit.benchmarking.whole_runs import measure_accuracy, measure_records
from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.files import write_atomically
from fashion_lit.training.device import tune_malloc
from fashion_lit.training.log_filters import silence_known_messages

PARTS: Mapping[str, Callable[[Effort], Iterator[Row]]] = {
    "data": measure_data,
    "loop": measure_loop,
    "train": measure_train,
    "inference": measure_inference,
    "accuracy": measure_accuracy,
    "records": measure_records,
}
BY_NAME_ONLY = ("records",)  # it trains report A, and opens the test set


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit benchmark ARGUMENTS`; returns the exit code."""
    args = parse(arguments)
    check_arguments(args)
    silence_known_messages()
    tune_malloc()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        effort = Effort(
            data=args.data,
            num_rounds=args.rounds,
            seconds=args.seconds,
            num_steps=args.steps,
            num_seeds=args.seeds,
            num_peer_seeds=args.peer_seeds,
            overrides=tuple(args.set),
            root=root,
        )
        write_torchvision_files(load(configure(effort)).train, root)
        rows = show(effort, args.parts or [part for part in PARTS if part not in BY_NAME_ONLY])
    write_rows(args.output, rows)
    print(f"\nThe figures of every round are in {args.output.absolute()}.")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="fashion-lit benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--data", choices=("fashion_mnist", "synthetic"), default="fashion_mnist")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison")
    parser.add_argument("--seconds", type=float, default=5.0, help="where images are counted")
    parser.add_argument("--steps", type=int, default=20, help="where steps are counted")
    parser.add_argument("--seeds", type=int, default=3, help="of accuracy and records: runs")
    parser.add_argument("--peer-seeds", type=int, default=1, help="runs of the reports' recipes")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of all runs that train",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    return parser.parse_args(arguments)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for parts that do not exist and numbers that measure nothing."""
    if unknown := set(args.parts) - PARTS.keys():
        raise UserError(
            f"Expected parts of {', '.join(PARTS)}, but got {', '.join(sorted(unknown))}."
        )
    if min(args.rounds, args.seconds, args.steps, args.seeds, args.peer_seeds) <= 0:
        raise UserError(
            "Expected --rounds, --seconds, --steps, --seeds and --peer-seeds to be more than 0."
        )


def write_rows(output: Path, rows: Sequence[Row]) -> None:
    """Write the machine and every round's figures as JSON."""
    ratios = (None if math.isnan(row.ratio) else row.ratio for row in rows)
    found = [asdict(row) | {"ratio": ratio} for row, ratio in zip(rows, ratios, strict=True)]
    write_atomically(output, json.dumps({"machine": machine(), "rows": found}, indent=2) + "\n")


def show(effort: Effort, parts: Sequence[str]) -> list[Row]:
    """Measure and print row by row."""
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"\n{'':<44}{'this project':>14}{'peer':>12}{'ratio':>8}  {'ms more':>8}  unit, peer")
    rows = []
    for part in parts:
        for row in PARTS[part](effort):
            ours, peer = row.middles
            print(
                f"{f'{row.part}: {row.what}':<44}{ours:>14,.1f}{number(peer, 1):>12}"
                f"{number(row.ratio, 2):>8}  {number(row.extra_milliseconds, 3):>8}  "
                + ", ".join(part for part in (row.unit, row.peer_name, row.note) if part),
                flush=True,
            )
            rows.append(row)
    return rows


def number(value: float, decimals: int) -> str:
    """Write a number for the table; "-" where there is none."""
    return "-" if math.isnan(value) else f"{value:,.{decimals}f}"
