"""Compare the speed of this project with that of the course reports' method.

fashion-lit benchmark                       all parts except records
fashion-lit benchmark data loop             only these parts
fashion-lit benchmark --data synthetic --rounds 1 --seconds 0.1 --steps 2   smoke test

Both sides alternate in one process, after a warm-up round. The table shows the median ratio over
the rounds: how many times as fast this project is. Run nothing else on the machine meanwhile.
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
from fashion_lit.config.command_line import (
    CommandParser,
    positive_integer,
    positive_number,
)
from fashion_lit.config.groups import PLACES
from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.files import check_writable, write_atomically
from fashion_lit.text import did_you_mean
from fashion_lit.training.device import tune_malloc
from fashion_lit.training.process import silence_known_messages

PARTS: Mapping[str, Callable[[Effort], Iterator[Row]]] = {
    "data": measure_data,
    "loop": measure_loop,
    "train": measure_train,
    "inference": measure_inference,
    "accuracy": measure_accuracy,
    "records": measure_records,
}
BY_NAME_ONLY = ("records",)  # trains course report A's recipe and opens the test set


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit benchmark ARGUMENTS` and return the exit code."""
    args = parse(arguments)
    check_arguments(args)
    check_writable(args.output)
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
    print(f"\nThe measurements of every round are in {args.output.absolute()}.")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser("benchmark", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--data", choices=("fashion_mnist", "synthetic"), default="fashion_mnist")
    parser.add_argument("--rounds", type=positive_integer, default=5, help="rounds per comparison")
    parser.add_argument(
        "--seconds", type=positive_number, default=5.0, help="of a throughput measurement"
    )
    parser.add_argument(
        "--steps", type=positive_integer, default=20, help="of a step-time measurement"
    )
    parser.add_argument("--seeds", type=positive_integer, default=3, help="of accuracy and records")
    parser.add_argument(
        "--peer-seeds", type=positive_integer, default=1, help="runs of the course reports' recipes"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an override for all training runs",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    return parser.parse_args(arguments)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for unknown parts, and for settings without effect in `--set`."""
    for key in (text.lstrip("+").partition("=")[0] for text in args.set):
        if key in PLACES:
            raise UserError(
                f"`--set {key}=…` has no effect, because a benchmark neither keeps runs nor starts "
                "from others; leave it out."
            )
    if unknown := set(args.parts) - PARTS.keys():
        raise UserError(
            f"Expected parts of {', '.join(PARTS)}, but got {', '.join(sorted(unknown))}"
            f"{did_you_mean(min(unknown), PARTS) or '.'}"
        )


def write_rows(output: Path, rows: Sequence[Row]) -> None:
    """Write the machine's description and every round's measurements as JSON."""
    ratios = (None if math.isnan(row.ratio) else row.ratio for row in rows)
    found = [asdict(row) | {"ratio": ratio} for row, ratio in zip(rows, ratios, strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps({"machine": machine(), "rows": found}, indent=2) + "\n")


def show(effort: Effort, parts: Sequence[str]) -> list[Row]:
    """Measure the parts, print each row as it is measured, and return the rows."""
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
    """Format a number for the table; NaN becomes "-"."""
    return "-" if math.isnan(value) else f"{value:,.{decimals}f}"
