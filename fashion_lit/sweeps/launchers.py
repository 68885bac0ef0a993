"""Start the jobs of a sweep or a search: one after another, or several at once.

    LocalLauncher().run(source, signals)

Each job is a process of its own, so none leaks memory or CUDA state into the next, and one that
dies takes no other with it. `slurm` starts them on a cluster.
"""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import PositiveInt
from tqdm import tqdm
from typing_extensions import override

from fashion_lit.errors import Stopped, UserError
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.signals import StopSignals, stop_signals
from fashion_lit.training.device import check_devices

POLL_SECONDS = 0.1
SHOW_SECONDS = 1.0
WINDOWS_CTRL_C = 0xC000013A  # STATUS_CONTROL_C_EXIT


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        run: its directory.
        overrides: what makes its configuration, as `prepare_overrides` returns them.
        config: that configuration.
        title: for people, "job 3 of 9".
        environment: variables for its process, beside those of this one.
    """

    run: RunDirectory
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    title: str = "job"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """The command that begins the run or goes on with it."""
        place = f'++run_dir="{self.run.path.absolute().as_posix()}"'
        return [sys.executable, "-m", "fashion_lit", "train", *self.overrides, place]

    @property
    def log_file(self) -> Path:
        """Where its output goes when several jobs run at once: beside the run's directory."""
        return self.run.path.with_name(f"{self.run.path.name}.log")

    @property
    def progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        epochs = self.run.status.get("epoch", 0) if self.run.exists else 0
        return min(1.0, epochs / self.config["trainer"]["max_epochs"])


class JobSource(Protocol):
    """Where a launcher gets its jobs."""

    total: int  # jobs in all, those done before included

    @property
    def num_done(self) -> int:
        """How many have ended, well or not."""
        ...

    @property
    def is_exhausted(self) -> bool:
        """Whether no job will come any more."""
        ...

    def take(self) -> Job | None:
        """Return a job to start now, if there is one."""
        ...

    def give_back(self, job: Job, exit_code: int) -> None:
        """Take note that a job's process has ended."""
        ...


class Launcher(ABC):
    """How the jobs of a sweep are started."""

    @abstractmethod
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError if runs of these configurations cannot be started so."""

    @abstractmethod
    def run(self, source: JobSource, signals: StopSignals) -> None:
        """Run jobs until there are no more.

        Raises Stopped once all have saved, if this process is asked to stop, or one of them was.
        """


class LocalLauncher(Launcher):
    """One job after another, each in this terminal."""

    @override
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError for runs on devices that are not there."""
        check_all_devices(configs)

    @override
    def run(self, source: JobSource, signals: StopSignals) -> None:
        def start(job: Job, slot: int) -> subprocess.Popen[bytes]:
            print(f"\n=== {job.title}: {job.run.path.name}", flush=True)
            return subprocess.Popen(job.command, env={**os.environ, **job.environment})

        run_processes(source, signals, start, num_slots=1)


class ParallelLauncher(Launcher):
    """Several jobs at once, each with a GPU, or with its share of the CPU's cores.

    Args:
        num_jobs: how many. With fewer GPUs than jobs, some share one.
    """

    def __init__(self, *, num_jobs: PositiveInt) -> None:
        self.num_jobs = num_jobs

    @override
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError for runs on several devices, whose shares would overlap, or on none."""
        check_all_devices(configs)
        for config in configs:
            if config["trainer"].get("devices", 1) != 1:
                raise UserError(
                    "Expected `trainer.devices` to be 1 under launcher=parallel, which gives each "
                    f"job one GPU or its share of cores, but got {config['trainer']['devices']}; "
                    "use launcher=local."
                )

    @override
    def run(self, source: JobSource, signals: StopSignals) -> None:
        with show_progress(source) as show:

            def start(job: Job, slot: int) -> subprocess.Popen[bytes]:
                tqdm.write(f"{'started':<11}  {job.title}: {job.run.path.name}", file=sys.stdout)
                environment = {**os.environ, **device_share(slot, self.num_jobs), **job.environment}
                with job.log_file.open("ab") as log:
                    return subprocess.Popen(
                        job.command, env=environment, stdout=log, stderr=subprocess.STDOUT
                    )

            run_processes(source, signals, start, num_slots=self.num_jobs, watch=show)


def check_all_devices(configs: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError unless this machine has the devices that every configuration asks for."""
    for config in configs:
        check_devices(config["trainer"], config["data"]["device"])


def device_share(slot: int, num_slots: int) -> dict[str, str]:
    """Return the environment variables that give one of `num_slots` processes its share.

    With GPUs, one of them, in turn; threads in any case, since data are prepared by them.
    """
    share = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // num_slots))}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if num_devices := torch.cuda.device_count():
        names = [str(i) for i in range(num_devices)] if given is None else given.split(",")
        # Of the names given, CUDA takes those before the first that it does not find.
        share["CUDA_VISIBLE_DEVICES"] = names[slot % num_devices].strip()
    return share


class Watch(Protocol):
    """Told what runs now, again and again; and which jobs have ended."""

    def __call__(self, running: Sequence[Job], ended: Sequence[Job]) -> None:
        """Show it."""
        ...


class Start(Protocol):
    """Starts a job's process in one of several slots."""

    def __call__(self, job: Job, slot: int) -> "subprocess.Popen[bytes]":
        """Start it."""
        ...


def run_processes(
    source: JobSource,
    signals: StopSignals,
    start: Start,
    *,
    num_slots: int,
    watch: Watch = lambda running, ended: None,
) -> None:
    """Keep `num_slots` processes running until the source has no more jobs; may raise Stopped."""
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    told = False
    signals.wait_for_a_good_moment = True
    while True:
        for slot in set(range(num_slots)) - running.keys():
            if signals.received is None and (job := source.take()) is not None:
                running[slot] = (job, start(job, slot))
        if not running and (source.is_exhausted or signals.received is not None):
            break
        time.sleep(POLL_SECONDS)
        if signals.received is not None and not told and os.name != "nt":
            for _, process in running.values():
                process.send_signal(signal.SIGTERM)  # a Ctrl-C has reached them already, maybe
            told = True
        ended = [(slot, *pair) for slot, pair in running.items() if pair[1].poll() is not None]
        for slot, job, process in ended:
            del running[slot]
            source.give_back(job, process.returncode)
            signals.received = signals.received or stopped_by(process.returncode)
        watch([job for job, _ in running.values()], [job for _, job, _ in ended])
    signals.wait_for_a_good_moment = False
    if signals.received is not None:
        raise Stopped(signals.received)


def stopped_by(exit_code: int) -> int | None:
    """Return the signal that asked a job to stop, as its exit code tells; None if it was not asked.

    A job that had no time to install its handlers is ended by the signal itself. Any other code is
    a crash: on Windows they are large numbers, 0xC0000005 for a wrong memory access.
    """
    if exit_code == WINDOWS_CTRL_C:
        return signal.SIGINT
    number = exit_code - 128 if exit_code > 0 else -exit_code
    return number if number in stop_signals() else None


@contextmanager
def show_progress(source: JobSource) -> Iterator[Watch]:
    """Show one bar over all jobs, and a line for each that ends."""
    with tqdm(
        total=source.total,
        disable=None,  # no bar in files and pipes
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
            if bar.disable or (not ended and time.monotonic() - shown_at < SHOW_SECONDS):
                return
            shown_at = time.monotonic()
            shares = [job.progress for job in running]
            bar.n = source.num_done + sum(shares)
            bar.set_description_str(f"{source.num_done} of {source.total} jobs done", refresh=False)
            bar.set_postfix_str(", ".join(f"{share:.0%}" for share in shares))

        yield watch


def describe_end(job: Job) -> str:
    """Say in a line how a job's run stands after its process."""
    status = job.run.status if job.run.exists else {}
    state = status.get("state", "not begun")
    state = "killed" if state == "running" else state
    told = f"{state:<11}  {job.title}: {job.run.path.name}"
    if state in ("finished", "pruned"):
        return told
    return f"{told}; {status.get('reason', '')} (see {job.log_file.name})"
