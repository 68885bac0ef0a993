"""Check fashion-lit on a GPU, stage by stage, within nine minutes.

python tests/gpu/check.py --out results                    all stages
python tests/gpu/check.py --out results --stages works     whether it trains, resumes and evaluates
python tests/gpu/check.py --out results --stages speed     how fast it is
python tests/gpu/check.py --out results --stages env,resume --budget 200
python tests/gpu/check.py --out results --small            whether the check itself works

A stage that fails or times out does not stop the others. A stage is skipped if too little time is
left. The exit code is 1 if a stage failed or was skipped.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from card import Meter
from commands import Check
from evaluations import evaluate, evaluate_on_cpu
from own_tests import tests, tests_on_gpu
from parallel import parallel
from results import Outcome, Result, Results
from resume import resume_stage
from runs import TINY
from stages import (
    Work,
    anatomy,
    benchmark_stage,
    compile_stage,
    default,
    env,
    fp16,
    report_a,
    report_b,
    waits,
)
from suspects import faults

BUDGET, SMALL_BUDGET = 525, 7200  # total seconds, unless --budget is given
MINIMUM = 12  # seconds; with less left, a stage is skipped


@dataclass(frozen=True)
class Stage:
    """One stage of the check.

    Args:
        name: its name for --stages.
        limit: its time limit in seconds; with --small it is multiplied by `commands.SLOWER`.
        work: the function that runs it.
    """

    name: str
    limit: float
    work: Work


EXACT = "trainer.deterministic=true"
REPORT_B = "experiment=report_b"
RESUME_REPORT_B = (REPORT_B, "trainer.benchmark=false", "trainer.deterministic=warn")
# The stages of a round run concurrently, so their times are meaningless; timed stages run alone.
WORKS = (
    [Stage("env", 50, env)],
    [Stage("default", 110, default)],
    [Stage("fp16", 70, fp16)],
    [
        Stage("resume", 90, resume_stage("exact", EXACT, kill_at=500)),
        Stage("resume_plain", 90, resume_stage("plain", kill_at=500, exact=False)),
        Stage("resume_fp16", 90, resume_stage("fp16", EXACT, "precision=fp16", kill_at=500)),
        Stage("resume_report_b", 90, resume_stage("b", *RESUME_REPORT_B, kill_at=250, small=())),
    ],
    [Stage("evaluate", 50, evaluate)],
    [
        Stage("faults", 150, faults),
        Stage("parallel", 100, parallel),
        Stage("waits", 60, waits),
        Stage("evaluate_on_cpu", 60, evaluate_on_cpu),
        Stage("tests", 150, tests),
        Stage("tests_on_gpu", 150, tests_on_gpu),
    ],
)
SPEED = (
    [Stage("bench_loop", 120, benchmark_stage("loop"))],
    [Stage("cuda_graphs", 60, compile_stage("default", "reduce-overhead", small=(TINY,)))],
    [Stage("anatomy", 60, anatomy)],
    [Stage("report_a", 90, report_a)],
    [Stage("bench_train", 80, benchmark_stage("train"))],
    [Stage("bench_inference", 50, benchmark_stage("inference"))],
    [Stage("cuda_graphs_b", 100, compile_stage("report_b", "reduce-overhead", REPORT_B))],
    [Stage("bench_data", 60, benchmark_stage("data"))],
    [Stage("compile", 70, compile_stage("default", "true", small=(TINY,)))],
    [Stage("report_b", 150, report_b)],
)
ROUNDS = (*WORKS, *SPEED)
GROUPS = {"works": WORKS, "speed": SPEED}
NAMES = [stage.name for stages in ROUNDS for stage in stages]


def main() -> int:
    """Run the requested stages; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for the results"
    )
    parser.add_argument("--small", action="store_true", help="small models and data, for a CPU")
    parser.add_argument(
        "--stages",
        type=names_of,
        default=NAMES,
        metavar="STAGE,STAGE",
        help=f"any of {', '.join(NAMES)}, or works or speed for the first or the second half; "
        "all by default",
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="time limit of the check")
    args = parser.parse_args()
    if unknown := set(args.stages) - set(NAMES):
        parser.error(f"no such stages: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results, began = Results(args.out.absolute()), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True) as folder:
        budget = args.budget or (SMALL_BUDGET if args.small else BUDGET)
        run_rounds(Check(args.small, Path(folder), began, budget, results), args.stages)
    print(f"\n{time.monotonic() - began:.0f} s in all\n\n{results.table}")
    return 0 if results.all_well else 1


def names_of(text: str) -> list[str]:
    """Return the names of the stages in --stages, with the groups expanded."""
    names: list[str] = []
    for word in text.split(","):
        group = [stage.name for stages in GROUPS.get(word, ()) for stage in stages]
        names += group or [word]
    return names


def run_rounds(check: Check, names: Sequence[str]) -> None:
    """Run the named stages, those of a round concurrently; stop after `env` if it fails."""
    meter = Meter()
    try:
        for stages in ROUNDS:
            todo = [stage for stage in stages if stage.name in names]
            with ThreadPoolExecutor(1 if check.small else max(1, len(todo))) as pool:
                results = list(pool.map(lambda stage: carry_out(stage, check, meter), todo))
            if any(result.stage == "env" and not result.well for result in results):
                print("check.py: the stage env failed, so all other stages are skipped")
                break
    finally:
        meter.stop()


def carry_out(stage: Stage, check: Check, meter: Meter) -> Result:
    """Run a stage if there is time, and record its result."""
    turn, began = check.turn(stage.limit), time.monotonic()
    well: bool | None
    if turn.seconds_left < MINIMUM:
        well, summary, figures = None, "skipped: no time left", {}
    else:
        try:
            well, summary, figures = stage.work(turn)
        except Exception as error:  # must not stop the other stages
            well, summary, figures = Outcome(False, f"{type(error).__name__}: {error}", {})
        if turn.seconds_left <= 0:
            summary = f"TOO LONG; {summary}"
    ended = time.monotonic()
    result = Result(
        stage.name,
        well,
        summary,
        figures,
        at_s=round(began - check.began, 1),
        seconds=round(ended - began, 1),
        card=meter.between(began, ended),
    )
    check.results.add(result)
    return result


if __name__ == "__main__":
    sys.exit(main())
