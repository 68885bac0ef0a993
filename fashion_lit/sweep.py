"""A multirun: its jobs, where each lies, and one after another in fresh processes.

    jobs = plan_jobs(overrides, Path("sweeps/lr"))
    run_jobs(jobs, signals)

A job's place is decided by its settings alone, so typing the same command again finds every job
where it was: finished ones are skipped, stopped ones go on, failed ones run again.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fashion_lit.config import LOCATION_KEYS, compose_jobs, leaves, parse_override, split_jobs
from fashion_lit.resuming import is_harmless
from fashion_lit.run_directory import RunDirectory
from fashion_lit.schema import Config, check
from fashion_lit.stopping import Stopped, StopSignals

NAME_LENGTH = 120  # characters of a job's folder that say what varies


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        run: its directory.
        overrides: what makes its configuration, as `prepare_overrides` returns them.
    """

    run: RunDirectory
    overrides: tuple[str, ...]


def fingerprint(config: Config) -> str:
    """Return eight hexadecimal digits for everything in the settings that can change the result."""
    decisive = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in leaves(config).items()
        if not is_harmless(key)
    }  # 1 and 1.0 are one value
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def plan_jobs(overrides: Sequence[str], sweep_dir: Path) -> list[Job]:
    """Return the jobs of a multirun's overrides, each configuration once; raises UserError.

    A job whose settings were run in this sweep before keeps that folder, whatever varied then.
    """
    varied = {o.key_or_group for o in map(parse_override, overrides) if o.is_sweep_override()}
    known = {path.name[-8:]: path for path in sorted(sweep_dir.glob("*-????????/"))}
    jobs: dict[str, Job] = {}
    for job_overrides in split_jobs(overrides):
        (config,) = compose_jobs(job_overrides, multirun=False)
        check(config)
        identity = fingerprint({k: v for k, v in config.items() if k not in LOCATION_KEYS})
        words = [o.lstrip("+") for o in job_overrides if parse_override(o).key_or_group in varied]
        name = f"{_folder_name(words)}-{identity}"
        path = known.get(identity, sweep_dir / name)
        jobs.setdefault(identity, Job(RunDirectory(path), tuple(job_overrides)))
    return list(jobs.values())


def _folder_name(words: Sequence[str]) -> str:
    text = ",".join(words) or "job"
    safe = "".join(c if c.isalnum() or c in "=,.+-_[]" else "_" for c in text)
    return safe[:NAME_LENGTH].rstrip(".")


def is_finished(run: RunDirectory) -> bool:
    """Whether a job has nothing left to do."""
    return run.exists and run.status.get("state") == "finished"


def run_jobs(jobs: Sequence[Job], signals: StopSignals) -> list[Job]:
    """Run the jobs that are not finished, each in a process of its own; returns those that failed.

    Fresh processes leak no memory and no CUDA state, and one that dies takes no other with it.
    """
    failed = []
    for number, job in enumerate(jobs, start=1):
        print(f"\n=== job {number} of {len(jobs)}: {job.run.path.name}", flush=True)
        if is_finished(job.run):
            accuracy = job.run.metrics["val/accuracy"]
            print(f"finished before, validation accuracy {100 * accuracy:.2f} %", flush=True)
        elif run_process(job, signals) != 0:
            failed.append(job)
    return failed


def run_process(job: Job, signals: StopSignals) -> int:
    """Run one job as `fashion-lit train` and wait for it; returns its exit code.

    Raises Stopped once the job has saved, if this process is asked to stop, or the job was.
    """
    place = f'++run_dir="{job.run.path.as_posix()}"'
    overrides = [o for o in job.overrides if parse_override(o).key_or_group != "sweep_name"]
    command = [sys.executable, "-m", "fashion_lit", "train", *overrides, place]
    signals.wait_for_a_good_moment = True
    with subprocess.Popen(command) as process:
        told = False
        while process.poll() is None:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                # A terminal's Ctrl-C reaches the job by itself; a second one would end it at once.
                if signals.received not in (None, signal.SIGINT) and not told and os.name != "nt":
                    process.send_signal(signals.received or signal.SIGTERM)
                    told = True
    signals.wait_for_a_good_moment = False
    if signals.received is not None:
        raise Stopped(signals.received)
    if process.returncode > 128:
        raise Stopped(process.returncode - 128)
    return process.returncode
