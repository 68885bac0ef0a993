"""The parts of `benchmark` that train fully: seconds to an accuracy, and whole recipes.

This project's runs include metrics, TensorBoard and checkpoints, as in `fashion-lit train`.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import lightning as L
from typing_extensions import override

from fashion_lit.benchmarking.contenders import Effort, built_run, configure, plain_seconds_until
from fashion_lit.benchmarking.timing import Row, kernels_restored
from fashion_lit.errors import UserError
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.text import command_for_process, quote_value

REPORT_B_ACCURACY = 0.9381  # report B's best validation accuracy, after epoch 19 of 20
RECIPES = {
    "the default recipe": [],
    "report B, 20 epochs": ["experiment=report_b"],
    "report A from scratch, 20 epochs": [
        "experiment=report_a",
        "model.pretrained=false",
        "precision=auto",
    ],
}


class StopAtAccuracy(L.Callback):
    """Ends training once val/accuracy reaches `target`, and records the seconds until then.

    Args:
        target: an accuracy in [0, 1].
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.began = time.perf_counter()
        self.seconds: float | None = None  # until the target; None if not reached

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.callback_metrics["val/accuracy"] >= self.target:
            self.seconds = time.perf_counter() - self.began
            trainer.should_stop = True


def measure_accuracy(effort: Effort) -> Iterator[Row]:
    """Measure the seconds until report B's validation accuracy, for two recipes.

    "ours" is a complete run of the default recipe, the peer report B's recipe in a plain loop over
    torchvision's images, both with precision=auto; validation time counts. A run that does not
    reach the accuracy counts with its whole duration, which is a lower bound. Each result is
    printed to stderr at once, since one seed of report B's recipe may take an hour.
    """
    ours, peer, missed = [], [], {"ours": 0, "peer": 0}
    for seed in range(max(effort.num_seeds, effort.num_peer_seeds)):
        for name, race, times, num_seeds in (
            ("ours", seconds_until, ours, effort.num_seeds),
            ("peer", plain_seconds_until, peer, effort.num_peer_seeds),
        ):
            if seed < num_seeds:
                overrides = ("precision=auto", f"seed={seed}")
                with kernels_restored():
                    seconds, reached = race(effort, REPORT_B_ACCURACY, *overrides)
                bound = "" if reached else ", not reached"
                print(f"seed {seed}, {name}: {seconds:,.1f} s{bound}", file=sys.stderr, flush=True)
                times.append(seconds)
                missed[name] += not reached
    notes = [f"{num} of {name} did not reach it" for name, num in missed.items() if num]
    what = f"until {REPORT_B_ACCURACY:.2%} of validation"
    peer_name = "report B's recipe in a plain loop"
    yield Row("accuracy", what, "s", ours, peer, peer_name, "; ".join(notes))


def seconds_until(effort: Effort, target: float, *overrides: str) -> tuple[float, bool]:
    """Train until val/accuracy reaches `target`, or to the end of the run.

    Returns the elapsed seconds and whether the target was reached.
    """
    with built_run(effort, configure(effort, *overrides)) as (trainer, classifier, datamodule):
        watch = StopAtAccuracy(target)
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        trainer.fit(classifier, datamodule)
        if watch.seconds is not None:
            return watch.seconds, True
        return time.perf_counter() - watch.began, False


def measure_records(effort: Effort) -> Iterator[Row]:
    """Train whole recipes by the command, and measure their seconds and test accuracies."""
    for name, overrides in RECIPES.items():
        num_seeds = effort.num_seeds if name == "the default recipe" else effort.num_peer_seeds
        runs = [train_whole(effort, *overrides, f"seed={seed}") for seed in range(num_seeds)]
        accuracies = [100 * run["test/accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if num_seeds > 1 else ""
        note = f"test {statistics.mean(accuracies):.2f}{spread} %, n = {num_seeds}"
        yield Row("records", name, "s", [run["seconds"] for run in runs], [], "", note)


def train_whole(effort: Effort, *overrides: str) -> dict[str, float]:
    """Run `fashion-lit train` in a separate process and return the run's metrics.

    Raises UserError with the last line of stderr if the command fails.
    """
    run = RunDirectory(effort.root / "_".join(("run", *overrides)).replace("=", "-"))
    place = f"run_dir={quote_value(run.path.as_posix())}"
    given = [f"data={effort.data}", *overrides, *effort.overrides, place]
    command = command_for_process("train", *given)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no error message"]
        raise UserError(f"Expected `{' '.join(given)}` to train, but: {lines[-1]}")
    return run.metrics
