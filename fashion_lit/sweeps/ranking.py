"""Rank the runs of a sweep from their directories alone.

    entries = rank(read_runs(Path("sweeps/lr")), "val/accuracy")

Runs that differ only in their seed form one entry, with the mean and standard deviation over seeds.
"""

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fashion_lit.config.settings import flatten, is_result_neutral, resume_command
from fashion_lit.errors import UserError
from fashion_lit.evaluation.statistics import student_interval
from fashion_lit.runs.data_records import DataIdentity, identity_of, is_known_by_settings
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.text import one_line, shorten

LESS_IS_BETTER = ("loss", "seconds", "max_allocated_gib", "max_reserved_gib")
MORE_IS_BETTER = ("accuracy", "precision", "recall", "f1", "images_per_second")
NAMED_BY_SETTINGS = re.compile(r"(.*=.*|job)-[0-9a-f]{8}")  # a sweep's job, by `plan_jobs`
MAX_NAME = 44  # characters


@dataclass(frozen=True)
class RunSummary:
    """The contents of one directory of a sweep.

    Args:
        path: the directory.
        settings: flat, {"optimizer.lr": 0.1, …}; {} if they cannot be read.
        metrics: metrics of a finished run, else {}.
        state: the state in `status.json`; "killed" if that is "running" but no process trains the
            run, "damaged" if the directory cannot be read.
        note: the progress of an unfinished run, or the reason for a failure.
        data: the identity of its data; None if they are not known, as before its training.
    """

    path: Path
    settings: Mapping[str, float | str]
    metrics: Mapping[str, float]
    state: str
    note: str = ""
    data: DataIdentity | None = None


@dataclass(frozen=True)
class Entry:
    """One row of a leaderboard: the runs of one configuration.

    Args:
        runs: one run for each seed.
        metric: the ranked metric of the finished runs, by seed.
        near_best: whether the difference to the best entry is within noise.
    """

    runs: Sequence[RunSummary]
    metric: Mapping[int, float] = field(default_factory=dict)
    near_best: bool = False

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN if no run is finished."""
        return statistics.fmean(self.metric.values()) if self.metric else math.nan

    @property
    def deviation(self) -> float:
        """The sample standard deviation over seeds; NaN for fewer than two."""
        return statistics.stdev(self.metric.values()) if len(self.metric) > 1 else math.nan

    @property
    def seconds(self) -> float | None:
        """The mean duration of the finished runs in seconds; None if no run is finished."""
        durations = [run.metrics["seconds"] for run in self.runs if "seconds" in run.metrics]
        return statistics.fmean(durations) if durations else None


def read_runs(sweep_dir: Path) -> list[RunSummary]:
    """Read every directory of a sweep, complete or damaged, except hidden ones."""
    folders = sorted(p for p in sweep_dir.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [read_run(folder) for folder in folders]


def read_run(folder: Path) -> RunSummary:
    """Read one directory; a damaged one raises nothing, its `note` says what is wrong."""
    run = RunDirectory(folder)
    try:
        if not run.exists:
            return RunSummary(folder, {}, {}, "damaged", f"no {run.config_file.name}")
        config = run.config
        settings = {k: v for k, v in flatten(config).items() if not is_result_neutral(k)}
        status = run.status
        if not status:
            return RunSummary(folder, {}, {}, "damaged", f"no readable {run.status_file.name}")
        state = str(status["state"])
        metrics = run.metrics if state == "finished" else {}
        note = "" if state == "finished" else _describe_progress(status, config)
        if state == "running" and not run.is_locked():
            state = "killed"
        data = identity_of(config, None if is_known_by_settings(config) else run.data)
        if state == "finished" and data is None and config.get("data", {}).get("name"):
            return RunSummary(folder, {}, {}, "damaged", _without_data(run))
        return RunSummary(folder, settings, metrics, state, note, data)
    except (UserError, OSError) as error:
        return RunSummary(folder, {}, {}, "damaged", str(error))


def finished_runs(folders: Sequence[Path]) -> tuple[list[RunSummary], list[str]]:
    """Return the finished runs in some folders, and what is wrong with each of the others.

    Args:
        folders: runs, and folders of runs such as a sweep; a run in two of them counts once.
    """
    groups = [[read_run(f)] if RunDirectory(f).exists else read_runs(f) for f in folders]
    runs = {run.path.resolve(): run for group in groups for run in group}
    finished, others = [], []
    for run in runs.values():
        if run.state != "finished":
            others.append(f"{run.path} is {run.state}: {run.note}")
        elif not RunDirectory(run.path).best_checkpoint.is_file():
            others.append(f"{run.path} has lost its best checkpoint")
        else:
            finished.append(run)
    return finished, others


def _without_data(run: RunDirectory) -> str:
    command = resume_command(run.path, run.config)
    return f"no {run.data_file.name}, so its data are not known; it is written by {command}"


def _describe_progress(status: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if status["state"] == "pruned":
        return str(status["reason"])
    done, total = int(status["epoch"]), int(config["trainer"]["max_epochs"])
    text = f"{done} of {total} epochs"
    if status["state"] == "running" and done:
        left = float(status["seconds"]) / done * (total - done)
        text += f", {left / 60:.1f} min left"
    return f"{text}; {status['reason']}" if status["reason"] else text


def is_less_better(metric: str) -> bool | None:
    """Return whether less of a metric is better; None if that is not known."""
    name = metric.split("/")[1] if "/" in metric else metric
    if name in LESS_IS_BETTER:
        return True
    return False if name in MORE_IS_BETTER else None


def rank(runs: Sequence[RunSummary], metric: str, *, smallest_first: bool = False) -> list[Entry]:
    """Group the runs over seeds and sort by mean `metric`, best first, unfinished entries last."""
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        if run.settings:
            key = json.dumps({k: v for k, v in run.settings.items() if k != "seed"}, sort_keys=True)
            groups.setdefault(key, []).append(run)
    entries = []
    for members in groups.values():
        finished = [run for run in members if metric in run.metrics]
        values = {int(run.settings["seed"]): run.metrics[metric] for run in finished}
        entries.append(Entry(members, values))
    sign = 1 if smallest_first else -1
    entries.sort(key=lambda e: (math.isnan(e.mean), sign * e.mean if e.metric else 0.0))
    if not entries or not entries[0].metric:
        return entries
    best = entries[0]
    near = [entry is not best and is_near(best, entry, metric) for entry in entries]
    return [Entry(e.runs, e.metric, n) for e, n in zip(entries, near, strict=True)]


def is_near(best: Entry, other: Entry, metric: str) -> bool:
    """Whether the 95 % interval of the difference between two entries contains 0.

    With at least three common seeds this is Student's interval, paired over those seeds. Otherwise,
    for accuracies only, it is the binomial error of the validation images. Both entries use the
    same images, so that error is too large and favours "near"; it ignores the spread between seeds.
    """
    common = best.metric.keys() & other.metric.keys()
    if len(common) >= 3:
        differences = [best.metric[seed] - other.metric[seed] for seed in sorted(common)]
        low, high = student_interval(differences)
        return low <= 0 <= high
    if not other.metric or not metric.endswith("/accuracy"):
        return False
    p, num_images = best.mean, number_of_images(best)
    error = math.sqrt(2 * p * (1 - p) / num_images)
    return abs(best.mean - other.mean) <= 2 * error


def number_of_images(entry: Entry) -> float:
    """Return how many images an entry was validated on."""
    run = next(run for run in entry.runs if run.metrics)
    settings = run.settings
    is_test = settings.get("data.validate_on_test", False)
    by_settings = settings.get("data.num_test", 10000) if is_test else settings["data.val_size"]
    return run.metrics.get("val/num_images", float(by_settings))


def varied_settings(entries: Sequence[Entry]) -> list[str]:
    """List the settings that differ between entries, the most informative first.

    That is the one that tells the most pairs of entries apart. A setting that tells the same pairs
    apart as an earlier one probably follows from it, as a network's width from its name, and is
    among the last, unless each entry has its own value.
    """
    keys = {key for entry in entries for key in entry.runs[0].settings} - {"seed"}
    found = []
    for key in keys:
        values = [str(entry.runs[0].settings.get(key, "")) for entry in entries]
        counts = Counter(values)
        numbers = {value: number for number, value in enumerate(counts)}
        num_alike = sum(count**2 for count in counts.values())  # pairs of entries, in both orders
        grouping = tuple(numbers[value] for value in values)
        if len(counts) > 1:
            found.append((num_alike, not key.endswith("name"), key, grouping))
    found.sort()
    seen: set[tuple[int, ...]] = set()
    first, last = [], []
    for *_, key, grouping in found:
        (last if grouping in seen else first).append(key)
        if max(grouping) + 1 < len(entries):
            seen.add(grouping)
    return first + last


def have_names(entries: Sequence[Entry]) -> bool:
    """Whether the directories' names say more than the settings, as a sweep's jobs' names do not.

    They do for single runs, and for the trials of a search.
    """
    names = (run.path.name for entry in entries for run in entry.runs)
    return not all(NAMED_BY_SETTINGS.fullmatch(name) for name in names)


def describe_name(entry: Entry) -> str:
    """Return the name of an entry's run, and how many others there are."""
    name, more = shorten(one_line(entry.runs[0].path.name), MAX_NAME), len(entry.runs) - 1
    return f"{name} and {more} more" if more else name
