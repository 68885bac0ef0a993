"""Start the jobs of a sweep or a search: one after another, or several at once.

    LocalLauncher(verbose=False).run(source, signals)

Each job is a separate process, so no memory or CUDA state leaks into the next job, and a crash does
not affect the others. The module `slurm` starts jobs on a cluster.
"""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import PositiveInt
from tqdm import tqdm
from typing_extensions import override

from fashion_lit.errors import Stopped, UserError
from fashion_lit.runs.signals import StopSignals, stop_signals
from fashion_lit.sweeps.jobs import Job, JobSource, describe_end
from fashion_lit.training.device import check_machine
from fashion_lit.training.terminal import progress_bar

POLL_SECONDS = 0.1
SHOW_SECONDS = 1.0
WINDOWS_CTRL_C = 0xC000013A  # STATUS_CONTROL_C_EXIT


class Launcher(ABC):
    """Starts the jobs of a sweep."""

    @abstractmethod
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError if this launcher cannot start runs of these configurations."""

    @abstractmethod
    def run(self, source: JobSource, signals: StopSignals) -> None:
        """Run jobs until the source has no more.

        If this process or one of the jobs receives a stop signal, raises Stopped once all running
        jobs have saved.
        """


class LocalLauncher(Launcher):
    """Runs one job after another.

    Args:
        verbose: show each job's whole output instead of one line for each job.
    """

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose

    @override
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError if a run's device is not available."""
        check_all(configs)

    @override
    def run(self, source: JobSource, signals: StopSignals) -> None:
        def start(job: Job, slot: int) -> subprocess.Popen[bytes]:
            print(f"\n=== {job.title}: {job.run.path.name}", flush=True)
            return subprocess.Popen(job.command, env={**os.environ, **job.environment})

        if self.verbose:
            run_processes(source, signals, start, num_slots=1)
        else:
            run_logged(source, signals, lambda slot: {}, num_slots=1)


class ParallelLauncher(Launcher):
    """Runs several jobs at once, each with one GPU or a share of the CPU cores.

    Args:
        num_jobs: the number of concurrent jobs. With fewer GPUs than jobs, some share one.
    """

    def __init__(self, *, num_jobs: PositiveInt) -> None:
        self.num_jobs = num_jobs

    @override
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError if a run needs several devices, or one that is not available."""
        check_all(configs)
        for config in configs:
            if config["trainer"].get("devices", 1) != 1:
                raise UserError(
                    "Expected `trainer.devices` to be 1 under launcher=parallel, which gives each "
                    f"job one GPU or its share of cores, but got {config['trainer']['devices']}; "
                    "use launcher=local."
                )

    @override
    def run(self, source: JobSource, signals: StopSignals) -> None:
        def share(slot: int) -> dict[str, str]:
            return device_share(slot, self.num_jobs)

        run_logged(source, signals, share, num_slots=self.num_jobs)


def check_all(configs: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError unless this machine can train every configuration."""
    for config in configs:
        check_machine(config)


def device_share(slot: int, num_slots: int) -> dict[str, str]:
    """Return the environment variables that give one of `num_slots` processes its share.

    Sets OMP_NUM_THREADS always, since CPU threads prepare the data, and CUDA_VISIBLE_DEVICES to one
    GPU, round-robin over the slots, if the machine has any.
    """
    share = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // num_slots))}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if num_devices := torch.cuda.device_count():
        names = [str(i) for i in range(num_devices)] if given is None else given.split(",")
        # CUDA ignores the first name that it does not find and all names after it.
        share["CUDA_VISIBLE_DEVICES"] = names[slot % num_devices].strip()
    return share


class Watch(Protocol):
    """Called at every poll with the running jobs and those that have ended since the last one."""

    def __call__(self, running: Sequence[Job], ended: Sequence[Job]) -> None:
        """Show the progress."""
        ...


class Start(Protocol):
    """Starts a job's process in one of several slots."""

    def __call__(self, job: Job, slot: int) -> "subprocess.Popen[bytes]":
        """Start the process."""
        ...


def run_logged(
    source: JobSource,
    signals: StopSignals,
    share: Callable[[int], Mapping[str, str]],
    *,
    num_slots: int,
) -> None:
    """Run jobs with their output in their log files; show a line for each, and a progress bar.

    Args:
        source: supplies the jobs.
        signals: watched for a request to stop.
        share: returns the additional environment variables of a slot's jobs.
        num_slots: the number of concurrent jobs.
    """
    folders: set[Path] = set()

    def start(job: Job, slot: int) -> subprocess.Popen[bytes]:
        folder = job.run.path.parent
        if folder not in folders:
            folders.add(folder)
            tqdm.write(f"Each job writes its output to JOB.log in {folder}", file=sys.stdout)
            sys.stdout.flush()
        environment = {**os.environ, **share(slot), **job.environment}
        with job.log_file.open("ab") as log:
            return subprocess.Popen(
                job.command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    with show_progress(source) as show:
        run_processes(source, signals, start, num_slots=num_slots, watch=show)


def run_processes(
    source: JobSource,
    signals: StopSignals,
    start: Start,
    *,
    num_slots: int,
    watch: Watch = lambda running, ended: None,
) -> None:
    """Keep `num_slots` processes running until the source has no more jobs.

    Raises Stopped after a stop signal, once all processes have ended.
    """
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    forwarded = False
    signals.defer_stop = True
    while True:
        for slot in set(range(num_slots)) - running.keys():
            if signals.received is None and (job := source.take()) is not None:
                running[slot] = (job, start(job, slot))
        if not running and (source.is_exhausted or signals.received is not None):
            break
        time.sleep(POLL_SECONDS)
        if signals.received is not None and not forwarded and os.name != "nt":
            for _, process in running.values():
                process.send_signal(signal.SIGTERM)  # a Ctrl-C may already have reached them
            forwarded = True
        ended = [(slot, *pair) for slot, pair in running.items() if pair[1].poll() is not None]
        for slot, job, process in ended:
            del running[slot]
            source.give_back(job, process.returncode)
            signals.received = signals.received or stopped_by(process.returncode)
        watch([job for job, _ in running.values()], [job for _, job, _ in ended])
    signals.defer_stop = False
    if signals.received is not None:
        raise Stopped(signals.received)


def stopped_by(exit_code: int) -> int | None:
    """Return the stop signal that an exit code stands for, or None if the job was not stopped.

    The code is 128 plus the signal's number, or minus that number if the job had not yet installed
    its signal handlers. All other codes are crashes; on Windows those are large numbers, such as
    0xC0000005 for an access violation.
    """
    if exit_code == WINDOWS_CTRL_C:
        return signal.SIGINT
    number = exit_code - 128 if exit_code > 0 else -exit_code
    return number if number in stop_signals() else None


@contextmanager
def show_progress(source: JobSource) -> Iterator[Watch]:
    """Show one progress bar over all jobs, and print a line for each job that ends."""
    with progress_bar(
        total=source.total,
        smoothing=0,
        bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left{postfix}",
        dynamic_ncols=True,
    ) as bar:
        bar.initial = source.num_done
        shown_at = 0.0

        def watch(running: Sequence[Job], ended: Sequence[Job]) -> None:
            nonlocal shown_at
            for job in ended:
                tqdm.write(describe_end(job), file=sys.stdout)
                sys.stdout.flush()
            if bar.disable or (not ended and time.monotonic() - shown_at < SHOW_SECONDS):
                return
            shown_at = time.monotonic()
            shares = [job.progress for job in running]
            bar.n = source.num_done + sum(shares)
            bar.set_description_str(f"{source.num_done} of {source.total} jobs done", refresh=False)
            bar.set_postfix_str(", ".join(f"{share:.0%}" for share in shares))

        yield watch
