"""Start the jobs of a sweep on a SLURM cluster, through submitit (the extra [slurm])."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from typing_extensions import override

from fashion_lit.errors import Stopped, UserError
from fashion_lit.files import write_atomically
from fashion_lit.runs.records import read_object
from fashion_lit.runs.signals import StopSignals
from fashion_lit.sweeps.jobs import Job, JobSource
from fashion_lit.sweeps.launchers import Launcher, show_progress
from fashion_lit.text import shorten

FOLDER = ".slurm"  # in the sweep's directory: submitit's logs and jobs.json, {run: SLURM job}
QUEUE_SECONDS = 5.0  # between two queries of the queue
MAX_TIMEOUTS = 1000  # how often a run may reach its time limit and be requeued


class SlurmLauncher(Launcher):
    """Submits a job array; a job is requeued when it reaches its time limit or is preempted.

    Args:
        partition: SLURM partition; None for the cluster's default.
        time_minutes: a job's time limit; a run that needs longer is requeued.
        gpus_per_node: 0 for none.
        cpus_per_task: cores and threads of each process.
        memory_gb: memory of a job; None for the cluster's default.
        num_jobs: the number of jobs that run at once.
        warning_seconds: the time before the limit at which a run is signalled to save.
        sbatch: any other options of sbatch, {"account": "mine"}.
    """

    def __init__(
        self,
        *,
        partition: str | None,
        time_minutes: PositiveInt,
        gpus_per_node: NonNegativeInt,
        cpus_per_task: PositiveInt,
        memory_gb: PositiveFloat | None,
        num_jobs: PositiveInt,
        warning_seconds: PositiveInt,
        sbatch: dict[str, Any],
    ) -> None:
        self.cpus_per_task = cpus_per_task
        self.parameters = {
            "partition": partition,
            "time": time_minutes,
            "gpus_per_node": gpus_per_node or None,
            "cpus_per_task": cpus_per_task,
            "mem": f"{max(1, round(1024 * memory_gb))}MB" if memory_gb else None,
            "array_parallelism": num_jobs,
            "signal_delay_s": warning_seconds,
            "additional_parameters": {k: v for k, v in sbatch.items() if v is not None},
        }

    @override
    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raise UserError without SLURM or submitit, or if trainer.devices is not a number."""
        if shutil.which("sbatch") is None:
            raise UserError(
                "Expected the command `sbatch` for launcher=slurm, but there is none; type this on "
                "a cluster's login node, or use launcher=local."
            )
        if find_spec("submitit") is None:
            raise UserError(
                "Expected submitit for launcher=slurm, but it is not installed: "
                'pip install -e ".[slurm]"'
            )
        for config in configs:
            num_processes(config)

    @override
    def run(self, source: JobSource, signals: StopSignals) -> None:
        active: dict[str, Job] = {}  # by SLURM job ID
        with show_progress(source) as show:
            while True:
                jobs = list(iter(source.take, None))
                active |= self.attach(jobs) if jobs else {}
                queued = read_queue()
                over = [active.pop(number) for number in active.keys() - queued]
                show(list(active.values()), over)
                for job in over:
                    state = job.run.status.get("state") if job.run.exists else None
                    source.give_back(job, 0 if state == "finished" else 1)
                if not active and source.is_exhausted:
                    return
                wait(active)

    def attach(self, jobs: Sequence[Job]) -> dict[str, Job]:
        """Submit the jobs that are not queued or running; returns {SLURM job ID: job} for all."""
        folder = jobs[0].run.path.parent / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / "jobs.json"
        known: dict[str, str] = read_object(record) if record.exists() else {}
        queued = read_queue()
        found = {known[job.run.path.name]: job for job in jobs if job.run.path.name in known}
        found = {number: job for number, job in found.items() if number in queued}
        for number, job in found.items():
            print(f"already queued as {number}: {job.run.path.name}", flush=True)
        waiting = {job.run.path for job in found.values()}
        for submitted in self.submit([job for job in jobs if job.run.path not in waiting], folder):
            found |= submitted
            known |= {job.run.path.name: number for number, job in submitted.items()}
            write_atomically(record, json.dumps(known, indent=2) + "\n")
        return found

    def submit(self, jobs: Sequence[Job], folder: Path) -> Iterator[dict[str, Job]]:
        """Submit one array for each number of processes; yields {SLURM job ID: job} of each.

        Raises UserError if the cluster refuses one.
        """
        from submitit import SlurmExecutor  # in the extra [slurm]
        from submitit.core.utils import FailedJobError

        from fashion_lit.sweeps.slurm_task import SlurmTask

        by_size = sorted(jobs, key=lambda job: num_processes(job.config))
        for (num_nodes, num_tasks), group in groupby(by_size, lambda j: num_processes(j.config)):
            members = list(group)
            executor = SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
            executor.update_parameters(
                **{key: value for key, value in self.parameters.items() if value is not None},
                job_name=f"fashion-lit_{folder.parent.name}",
                nodes=num_nodes,
                ntasks_per_node=num_tasks,
            )
            threads = {"OMP_NUM_THREADS": str(self.cpus_per_task)}
            try:
                with executor.batch():
                    handles = [
                        executor.submit(
                            SlurmTask(j.command, {**threads, **j.environment}, j.log_file)
                        )
                        for j in members
                    ]
            except (FailedJobError, subprocess.CalledProcessError) as error:
                reason = " ".join(str(getattr(error, "stderr", None) or error).split())
                raise UserError(
                    f"Expected the cluster to take {len(members)} jobs, but sbatch refused them: "
                    f"{shorten(reason, 300)}; see launcher.partition, time_minutes and sbatch."
                ) from None
            for job, handle in zip(members, handles, strict=True):
                print(f"submitted as {handle.job_id}: {job.run.path.name}", flush=True)
            yield {handle.job_id: job for job, handle in zip(members, handles, strict=True)}


def num_processes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of nodes and of processes on each; raises UserError if not a number."""
    devices, num_nodes = (config["trainer"].get(key, 1) for key in ("devices", "num_nodes"))
    if not isinstance(devices, int) or devices < 1:
        raise UserError(
            "Expected `trainer.devices` to be a number under launcher=slurm, which asks the "
            f"cluster for as many, but got {devices!r}."
        )
    return num_nodes, devices


def read_queue() -> set[str]:
    """Return the IDs of this user's queued and running jobs; repeats squeue until it succeeds."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return set(done.stdout.split())
        print(f"squeue: {done.stderr.strip()}; retrying", file=sys.stderr, flush=True)
        time.sleep(QUEUE_SECONDS)


def wait(numbers: Iterable[str]) -> None:
    """Wait before the next query of the queue; on a stop, print how to cancel and raise Stopped."""
    try:
        time.sleep(QUEUE_SECONDS)
    except Stopped:
        print(
            "\nThe cluster's jobs continue; the same command watches them. To cancel them:\n"
            f"  scancel {' '.join(sorted(numbers))}",
            flush=True,
        )
        raise
