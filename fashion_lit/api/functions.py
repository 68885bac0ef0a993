"""Train, sweep and rank from Python: a notebook, a thread or a script, as often as wanted.

    run = train(["model=report_cnn", "trainer.max_epochs=2"])
    runs = sweep(["optimizer.lr=0.05,0.1", "sweep_name=lr"])
    leaderboard("sweeps/lr")

They do what the commands of these names do, and raise errors: UserError, which is a ValueError,
for settings or files that are wrong, and the error itself if a run fails. A run that fails or is
stopped keeps its directory, from which `train(["run_dir=…"])` resumes it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_lit.api.launch import prepare, start_run, start_sweep
from fashion_lit.api.rank import check_folder, runs_to_rank
from fashion_lit.config.compose import compose_jobs, hydra_errors_for_users
from fashion_lit.config.groups import SWEEP
from fashion_lit.config.overrides import split_jobs
from fashion_lit.errors import RunError, Stopped, UserError
from fashion_lit.runs.signals import StopSignals
from fashion_lit.sweeps.ranking import is_less_better, rank, varied_settings
from fashion_lit.sweeps.tables import make_rows, trouble
from fashion_lit.text import shorten

# Importing torch and pandas takes seconds.
if TYPE_CHECKING:
    import pandas as pd

    from fashion_lit.sweeps.jobs import Job
    from fashion_lit.training.loading import Run


def train(overrides: Sequence[str] = (), *, config_dirs: Sequence[str | Path] = ()) -> "Run":
    """Train a run, or resume one, in this process; return it when it is finished.

    The result is bit-identical to that of `fashion-lit train`. Torch's flags and generators, the
    environment and the filters of warnings are those of a new process meanwhile, and afterwards as
    before; so calls in several threads take turns.

    Args:
        overrides: settings as on the command line, such as "optimizer.lr=0.1", or "run_dir=…" to
            resume the run in a directory.
        config_dirs: directories with own configurations, as of `--config-dir`.

    Raises:
        UserError: the settings are wrong, or need several processes.
        KeyboardInterrupt: Ctrl-C, a notebook's interrupt or another stop signal came, and the run
            has saved a checkpoint. In another thread than the main one no signal stops a run.
        Exception: the run failed; this is its error, and its status is "failed".
    """
    typed, directories = _as_typed(overrides, config_dirs)
    if any(text.lstrip("+").startswith(f"{SWEEP}=") for text in typed):
        raise UserError(f"`{SWEEP}` runs several jobs; call fashion_lit.sweep with it.")
    with _errors_of_python() as signals:
        prepared = prepare(typed, directories, multirun=False)
        from fashion_lit.training.process import as_in_new_process

        with as_in_new_process():
            directory = start_run(prepared, signals, may_start_others=False)
    from fashion_lit.training.loading import load_run

    return load_run(directory, plugins=_plugins_of(prepared))


def sweep(overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = ()) -> "list[Run]":
    """Run each combination of several values, as `fashion-lit train -m`; return the runs.

    Each job is a process of its own. The same call continues a sweep that was stopped. The runs are
    returned, not their ranking, because they hold all of it: `leaderboard` ranks their folder.

    Args:
        overrides: settings as on the command line, such as "optimizer.lr=0.1,0.2" and
            "sweep_name=first".
        config_dirs: directories with own configurations, as of `--config-dir`.

    Returns:
        The finished runs, in the order of the jobs.

    Raises:
        UserError: the settings are wrong, or a job failed, after the others have ended.
        KeyboardInterrupt: Ctrl-C, a notebook's interrupt or another stop signal came, and the jobs
            have saved.
    """
    typed, directories = _as_typed(overrides, config_dirs)
    with _errors_of_python() as signals:
        prepared = prepare(typed, directories, multirun=True)
        flags = ["-m", *(f"--config-dir={directory}" for directory in directories)]
        jobs = start_sweep(prepared, [*flags, *typed], signals)
    if failed := [job for job in jobs if not job.is_finished]:
        raise UserError(_describe_failed(failed, jobs))
    from fashion_lit.training.loading import load_run

    plugins = _plugins_of(prepared)
    return [load_run(job.run.path, plugins=plugins) for job in jobs]


def leaderboard(directory: str | Path, *, metric: str = "val/accuracy") -> "pd.DataFrame":
    """Rank the runs of a sweep or another folder, best first; writes no files.

    Args:
        directory: sweeps/NAME, or a folder of runs.
        metric: the validation metric to rank by.

    Returns:
        A row for each configuration, with the columns of leaderboard.csv: "rank", each setting that
        differs, "mean" and "std" of the metric over the "n" seeds, "near_best" (within noise of the
        best), "seconds", "state", and "jobs", the names of the runs' directories. Warns of
        directories that hold no run that can be read.

    Raises UserError if there are no runs, or the metric is unknown.
    """
    import pandas as pd

    for name, value in (("directory", directory), ("metric", metric)):
        if not isinstance(value, str | Path):
            raise UserError(f"Expected a text as `{name}`, but got {shorten(repr(value))}.")
    folder = Path(directory).expanduser()
    check_folder(folder, metric)
    runs = runs_to_rank(folder, metric)
    if message := trouble(runs):
        warnings.warn(" ".join(message.split()), stacklevel=2)
    less_is_better = is_less_better(metric)
    if less_is_better is None:
        raise UserError(
            f"Expected a metric of which less or more is always better, but got {metric!r}."
        )
    entries = rank(runs, metric, smallest_first=less_is_better)
    rows = make_rows(entries, varied_settings(entries))
    floats = dict.fromkeys(("mean", "std", "seconds"), float)  # None becomes NaN
    return pd.DataFrame(rows).astype({"rank": "Int64"} | floats)


def _plugins_of(overrides: Sequence[str]) -> list[str]:
    """Return the packages that overrides, as `prepare` returns them, trust."""
    (first,) = compose_jobs(split_jobs(overrides)[0], multirun=False)
    return first["plugins"]


def _as_typed(
    overrides: Sequence[str], config_dirs: Sequence[str | Path]
) -> tuple[list[str], list[str]]:
    """Return both arguments as lists of texts; raises UserError if they hold anything else."""
    for name, given, kinds, example in (
        ("overrides", overrides, (str,), '["optimizer.lr=0.1"]'),
        ("config_dirs", config_dirs, (str, Path), '["mine"]'),
    ):
        is_list = isinstance(given, list | tuple)
        if not is_list or not all(isinstance(item, kinds) for item in given):
            raise UserError(
                f"Expected `{name}` to be a list of texts, such as {example}, but got "
                f"{shorten(repr(given))}."
            )
    return list(overrides), [str(path) for path in config_dirs]


@contextmanager
def _errors_of_python() -> Iterator[StopSignals]:
    """Watch for stop signals, and raise what Python code expects instead of what commands do."""
    with StopSignals() as signals, hydra_errors_for_users():
        try:
            yield signals
        except RunError as failure:
            error = failure.__cause__
            assert error is not None
            error.add_note(str(failure).removeprefix(f"{error}\n"))
            raise error from error.__cause__
        except Stopped as stop:
            raise KeyboardInterrupt(f"stopped by {stop.name}") from None
        except SystemExit:  # Lightning's, when a callback raises KeyboardInterrupt
            raise KeyboardInterrupt from None


def _describe_failed(failed: "Sequence[Job]", jobs: "Sequence[Job]") -> str:
    """Say which jobs of a sweep failed, and why the first did."""
    from fashion_lit.sweeps.jobs import last_line

    job = failed[0]
    status = job.run.status if job.run.exists else {}
    reason = str(status.get("reason") or last_line(job.log_file)).rstrip(".")
    folder = job.run.path.parent.as_posix()
    return (
        f"Expected all {len(jobs)} jobs to finish, but {len(failed)} did not, first "
        f"{job.run.path.name}: {reason} (see {job.log_file}). The same call repeats what failed; "
        f"leaderboard({folder!r}) ranks the others."
    )
