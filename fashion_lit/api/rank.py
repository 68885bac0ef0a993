"""Read the runs of a folder that are to be ranked, or say why there are none.

entries = rank(runs_to_rank(Path("sweeps/lr"), "val/accuracy"), "val/accuracy")
"""

from collections.abc import Sequence
from pathlib import Path

from fashion_lit.errors import UserError
from fashion_lit.runs.data_records import check_one_data_set
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.sweeps.ranking import RunSummary, read_runs
from fashion_lit.text import did_you_mean, quote_command

MAX_FOLDERS = 8  # named where one is to be chosen
MAX_CLASSES = 12  # named in a message


def check_folder(folder: Path, metric: str) -> None:
    """Raise UserError unless a folder may hold runs, and for a metric of the test set."""
    if not folder.is_dir():
        raise UserError(
            f"Expected the directory of a sweep, sweeps/NAME, but there is no {folder}."
        )
    if RunDirectory(folder).exists:
        run_dir = folder.absolute()
        evaluate = quote_command("fashion-lit", "evaluate", str(run_dir))
        rank_all = quote_command("fashion-lit", "leaderboard", str(run_dir.parent))
        raise UserError(
            f"Expected a folder of runs to compare, but {folder} is one run; type "
            f"{evaluate} to evaluate it, or {rank_all} to rank it among its neighbours."
        )
    if metric.startswith("test/"):
        raise UserError(
            f"Expected a validation metric to rank by, but got {metric!r}; use fashion-lit "
            "leaderboard --evaluate-best to open the test set once, for the best run."
        )


def runs_to_rank(folder: Path, metric: str) -> list[RunSummary]:
    """Read the runs in a folder.

    Raises UserError if there is none, they have different data, or none records the metric.
    """
    runs = read_runs(folder)
    if not any(run.settings for run in runs):
        damaged = [run for run in runs if RunDirectory(run.path).exists]
        if damaged:
            raise UserError(
                f"Expected runs in {folder}, but of {len(damaged)} none can be read; the first, "
                f"{damaged[0].path.name}: {damaged[0].note}"
            )
        raise UserError(describe_folders(folder))
    check_one_data_set((str(run.path), run.data) for run in runs if run.settings)
    known = sorted({name for run in runs for name in run.metrics if not name.startswith("test/")})
    if known and metric not in known:
        hint = did_you_mean(metric, known) or "."
        raise UserError(
            f"Expected a metric that runs record, but got {metric!r}; they record "
            f"{describe_metrics(known)}{hint}"
        )
    return runs


def describe_metrics(names: Sequence[str]) -> str:
    """List the names of metrics, those of a class once for all classes: "…, val/f1/CLASS"."""
    by_class = [name.rpartition("/") for name in names if name.count("/") == 2]
    kinds = dict.fromkeys(f"{kind}/CLASS" for kind, _, _ in by_class)
    text = ", ".join([*(name for name in names if name.count("/") < 2), *kinds])
    classes = dict.fromkeys(name for _, _, name in by_class)
    named = [*list(classes)[:MAX_CLASSES], *(["…"] if len(classes) > MAX_CLASSES else [])]
    return f"{text}, where CLASS is {', '.join(named)}" if classes else text


def describe_folders(folder: Path) -> str:
    """Say that a folder holds no runs, and which folders in it do, the latest first."""
    depths = (folder.glob(f"{'*/' * depth}config.yaml") for depth in (2, 3))
    found = {file.parent.parent for files in depths for file in files}
    hidden = [f for f in found if any(p.startswith(".") for p in f.relative_to(folder).parts)]
    latest = sorted(found.difference(hidden), key=lambda f: (-f.stat().st_mtime, f))
    if not latest:
        return f"Expected runs in {folder}, but none of its directories holds one."
    commands = [quote_command("fashion-lit", "leaderboard", str(f)) for f in latest[:MAX_FOLDERS]]
    more = [f"{len(latest) - MAX_FOLDERS} more"] if len(latest) > MAX_FOLDERS else []
    return f"Expected runs in {folder}, but they are further down: {', '.join([*commands, *more])}"
