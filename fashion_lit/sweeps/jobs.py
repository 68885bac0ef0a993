"""The jobs of a multirun: their directories, and which of them remain to run.

    jobs = plan_jobs(overrides, Path("sweeps/lr"))
    launcher.run(Queue(jobs), signals)

A job's directory depends only on its settings. Running the same command again therefore finds every
job: it skips finished jobs, resumes stopped ones and repeats failed ones.
"""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm
from typing_extensions import override

from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import parse_override
from fashion_lit.config.overrides import split_jobs
from fashion_lit.config.schema import check, source_of
from fashion_lit.config.settings import LOCATION_KEYS, Config, is_result_neutral, leaves
from fashion_lit.config.typed import check_effects
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.initial_weights import check_initial_weights, with_settings_of_source
from fashion_lit.runs.resume import resolve_run_config
from fashion_lit.runs.teachers import check_teachers
from fashion_lit.text import command_for_process, one_line, quote_value

NAME_LENGTH = 120  # greatest length of the varied settings in a job's folder name, in characters


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        run: its directory.
        overrides: compose to `config`; as `prepare_overrides` returns them.
        config: its configuration.
        title: shown to the user, such as "job 3 of 9".
        environment: variables for its process, in addition to those of this process.
    """

    run: RunDirectory
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    title: str = "job"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """The command that starts or resumes the run."""
        place = f"++run_dir={quote_value(self.run.path.absolute().as_posix())}"
        return command_for_process("train", *self.overrides, place)

    @property
    def log_file(self) -> Path:
        """The file for its output, next to the run's directory."""
        return self.run.path.with_name(f"{self.run.path.name}.log")

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished, and its metrics can be read."""
        return self.run.exists and self.run.is_complete

    @property
    def progress(self) -> float:
        """The fraction of the run's epochs that are done, in [0, 1]."""
        epochs = self.run.status.get("epoch", 0) if self.run.exists else 0
        return min(1.0, epochs / self.config["trainer"]["max_epochs"])


class JobSource(Protocol):
    """Supplies a launcher with jobs."""

    total: int  # number of jobs, including those done before

    @property
    def num_done(self) -> int:
        """The number of jobs that have ended, successfully or not."""
        ...

    @property
    def is_exhausted(self) -> bool:
        """Whether `take` has no more jobs to return."""
        ...

    def take(self) -> Job | None:
        """Return a job to start now, or None."""
        ...

    def give_back(self, job: Job, exit_code: int) -> None:
        """Record that a job's process has ended."""
        ...


def fingerprint(config: Config) -> str:
    """Hash all settings that can change the result to eight hexadecimal digits.

    `data.device` is ignored if it is "auto", which means the training device.
    """
    decisive = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in leaves(config).items()
        if not (is_result_neutral(key) or (key, value) == ("data.device", "auto"))
    }  # 1 and 1.0 count as the same value
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def plan_jobs(overrides: Sequence[str], sweep_dir: Path, name: str | None = None) -> list[Job]:
    """Expand a multirun's overrides into jobs, each configuration once.

    A job whose settings already have a folder in this sweep keeps that folder, whichever settings
    varied then. Other folders are named after `name`, or after the varied settings, followed by a
    fingerprint. Raises UserError for an invalid configuration.
    """
    varied = {o.key_or_group for o in map(parse_override, overrides) if o.is_sweep_override()}
    known = {path.name[-8:]: path for path in sorted(sweep_dir.glob("*-????????/"))}
    jobs: dict[str, Job] = {}
    for job_overrides in split_jobs(overrides):
        (config,) = compose_jobs(job_overrides, multirun=False)
        config = check(with_settings_of_source(config, job_overrides))
        identity = fingerprint({k: v for k, v in config.items() if k not in LOCATION_KEYS})
        words = [o.lstrip("+") for o in job_overrides if parse_override(o).key_or_group in varied]
        if identity not in known:
            check_new_job(config, job_overrides)
        path = known.get(identity, sweep_dir / f"{name or _folder_name(words)}-{identity}")
        own = [o for o in job_overrides if not _is_of_sweep(o)]
        jobs.setdefault(identity, Job(RunDirectory(path), tuple(own), config))
    titles = [f"job {number} of {len(jobs)}" for number in range(1, len(jobs) + 1)]
    return [replace(job, title=title) for job, title in zip(jobs.values(), titles, strict=True)]


def check_new_job(config: Config, overrides: Sequence[str]) -> None:
    """Raise UserError for settings without effect, or files that a new run cannot start from."""
    check_effects(config, overrides, source_of(config).channels)
    check_initial_weights(config)
    if config["ckpt_path"] is not None:
        resolve_run_config(config, overrides)  # is it there, and are epochs left?
    else:
        check_teachers(config, {})


def _is_of_sweep(override: str) -> bool:
    """Whether an override configures the sweep rather than its jobs, which need `plugins`, too."""
    key = parse_override(override).key_or_group.split(".")[0]
    return key in LOCATION_KEYS and key != "plugins"


def _folder_name(words: Sequence[str]) -> str:
    text = ",".join(words) or "job"
    safe = "".join(c if c.isalnum() or c in "=,.+-_[]" else "_" for c in text)
    return safe[:NAME_LENGTH].rstrip(".")


def describe_end(job: Job) -> str:
    """Describe a job whose process has ended: one line, and one more on why it did not finish."""
    status = job.run.status if job.run.exists else {}
    state = str(status.get("state", "not begun"))
    if state == "running" and not job.run.is_locked():  # else another process trains it
        state = "killed"
    if state == "finished" and not job.run.is_complete:
        state = "damaged"
    accuracy = f"{100 * job.run.metrics['val/accuracy']:.2f} %" if state == "finished" else ""
    seconds = f"{status['seconds']:.0f} s" if status else ""
    line = f"{state:<11}  {accuracy:>8}  {seconds:>7}  {job.title}: {job.run.path.name}"
    if state in ("finished", "pruned", "interrupted", "running"):
        return line
    sudden = "its process was killed or crashed" if state == "killed" else last_line(job.log_file)
    return f"{line}\n  {status.get('reason') or sudden} (see {job.log_file})"


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, such as why a command was refused."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((one_line(line) for line in reversed(lines) if line.strip()), "no output")


class Queue(JobSource):
    """The unfinished jobs of a multirun; a job that another process is training stays queued.

    Args:
        jobs: all jobs of the multirun.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.total = len(jobs)
        self.failed: list[Job] = []
        self._waiting = deque(jobs)
        self._num_running = 0

    @property
    @override
    def num_done(self) -> int:
        """The number of jobs that have ended, successfully or not."""
        return self.total - len(self._waiting) - self._num_running

    @property
    @override
    def is_exhausted(self) -> bool:
        """Whether no job is waiting to be started."""
        return not self._waiting

    @override
    def take(self) -> Job | None:
        """Return the next job that no process is training, or None; print the finished ones."""
        for _ in range(len(self._waiting)):
            job = self._waiting.popleft()
            if job.is_finished:
                tqdm.write(f"{describe_end(job)} (finished before)", file=sys.stdout)
                sys.stdout.flush()
            elif job.run.exists and job.run.is_locked():
                self._waiting.append(job)
            else:
                self._num_running += 1
                return job
        return None

    @override
    def give_back(self, job: Job, exit_code: int) -> None:
        """Record that a job has ended; requeue it if another process started it first."""
        self._num_running -= 1
        if exit_code and job.run.exists and job.run.is_locked():
            self._waiting.append(job)
        elif exit_code and not job.is_finished:  # another process may have finished it
            self.failed.append(job)
