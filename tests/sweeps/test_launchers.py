"""Launchers: the number of concurrent jobs, their devices, and how they stop."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
import torch

from fashion_lit.config.compose import compose_jobs
from fashion_lit.errors import Stopped, UserError
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.signals import StopSignals
from fashion_lit.sweeps import launchers
from fashion_lit.sweeps.jobs import Job, Queue
from fashion_lit.sweeps.launchers import (
    Launcher,
    LocalLauncher,
    ParallelLauncher,
    device_share,
    run_processes,
    show_progress,
    stopped_by,
)
from fashion_lit.sweeps.slurm import num_processes

(CONFIG,) = compose_jobs(["++trainer.max_epochs=4"], multirun=False)


class Script:
    """Jobs that are Python one-liners."""

    def __init__(self, folder: Path, num_jobs: int) -> None:
        self.jobs = deque(
            Job(RunDirectory(folder / str(i)), (), CONFIG, title=f"job {i}")
            for i in range(num_jobs)
        )
        self.total = num_jobs
        self.ended: list[tuple[str, int]] = []

    @property
    def num_done(self) -> int:
        return len(self.ended)

    @property
    def is_exhausted(self) -> bool:
        return not self.jobs

    def take(self) -> Job | None:
        return self.jobs.popleft() if self.jobs else None

    def give_back(self, job: Job, exit_code: int) -> None:
        self.ended.append((job.title, exit_code))


def start_python(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code])


def test_at_most_num_slots_jobs_run_at_once_and_all_end(tmp_path: Path) -> None:
    source = Script(tmp_path, 5)
    most = 0

    def watch(running: list[Job], ended: list[Job]) -> None:
        nonlocal most
        most = max(most, len(running) + len(ended))

    def start(job: Job, slot: int) -> "subprocess.Popen[bytes]":
        assert slot in (0, 1)
        return start_python(f"import time; time.sleep(0.2); exit({job.title[-1]} == 3)")

    run_processes(source, StopSignals(), start, num_slots=2, watch=watch)  # type: ignore[arg-type]
    assert most == 2
    assert sorted(source.ended) == [(f"job {i}", int(i == 3)) for i in range(5)]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot ask a process to stop")
def test_a_stop_reaches_all_jobs_and_no_new_one_starts(tmp_path: Path) -> None:
    source, signals = Script(tmp_path, 5), StopSignals()
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(60)"
    began = time.monotonic()

    def watch(running: object, ended: object) -> None:
        if time.monotonic() - began > 1.5:  # Python has started
            signals.received = signal.SIGINT

    with pytest.raises(Stopped) as stop:
        run_processes(
            source, signals, lambda job, slot: start_python(code), num_slots=2, watch=watch
        )
    assert stop.value.exit_code == 130
    assert sorted(source.ended) == [("job 0", 143), ("job 1", 143)]
    assert len(source.jobs) == 3


def test_an_exit_code_tells_whether_a_job_was_asked_to_stop() -> None:
    codes = {0: None, 1: None, 2: None, 130: 2, 143: 15, -15: 15, -2: 2}
    codes |= {-9: None, 137: None, -11: None, 255: None}  # killed, out of memory, crashed
    codes |= {0xC0000005: None, 0xC0000409: None, 0xC000013A: 2}  # Windows: crashes, and Ctrl-C
    if hasattr(signal, "SIGUSR1"):
        codes |= {128 + signal.SIGUSR1: signal.SIGUSR1, 128 + signal.SIGHUP: signal.SIGHUP}
    assert {code: stopped_by(code) for code in codes} == codes


def test_each_job_gets_its_gpu_or_its_share_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_share(1, 3) == {"OMP_NUM_THREADS": "2"}
    assert device_share(0, 9) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_share(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5e")
    assert [device_share(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "GPU-5e", "4"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # it stops at the first wrong name
    for visible in ("0,1", "0, 1", "0,-1", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [device_share(i, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["0", "0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" not in device_share(0, 2)


def test_runs_on_several_devices_are_refused_in_parallel() -> None:
    launcher = ParallelLauncher(num_jobs=2)
    launcher.check([CONFIG])
    with pytest.raises(UserError, match=r"Expected `trainer\.devices` to be 1 under"):
        launcher.check([CONFIG, CONFIG | {"trainer": {"devices": 2}}])


@pytest.mark.parametrize("launcher", [LocalLauncher(verbose=False), ParallelLauncher(num_jobs=2)])
def test_jobs_on_an_unavailable_device_are_refused(launcher: Launcher) -> None:
    launcher.check([CONFIG])
    with pytest.raises(UserError, match=r"Expected a device for trainer\.accelerator=tpu"):
        launcher.check([CONFIG, CONFIG | {"trainer": {"accelerator": "tpu"}}])


def test_slurm_gets_the_number_of_processes_of_a_run() -> None:
    assert num_processes({"trainer": {}}) == (1, 1)
    assert num_processes({"trainer": {"devices": 4, "num_nodes": 2}}) == (2, 4)
    for devices in ("auto", -1, [0, 1]):
        with pytest.raises(UserError, match="to be a number under launcher=slurm"):
            num_processes({"trainer": {"devices": devices}})


def make_job(folder: Path, state: str | None) -> Job:
    run = RunDirectory(folder)
    if state:
        folder.mkdir()
        run.create({"seed": 0, **CONFIG})
        run.write_status(state, progress={"epoch": 1, "seconds": 9.0})  # type: ignore[arg-type]
        run.write_metrics({"val/accuracy": 0.5})
    return Job(run, (), CONFIG, title=folder.name)


def test_jobs_of_other_processes_wait_and_failed_ones_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {"done": "finished", "busy": "running", "stopped": "interrupted", "new": None}
    jobs = {name: make_job(tmp_path / name, state) for name, state in states.items()}
    queue = Queue(list(jobs.values()))
    with jobs["busy"].run.lock():
        assert queue.take() is jobs["stopped"]
        line = "finished      50.00 %      9 s  done: done (finished before)\n"
        assert capsys.readouterr().out == line
        assert queue.take() is jobs["new"]
        assert queue.take() is None
        assert not queue.is_exhausted
        assert queue.num_done == 1
    assert queue.take() is jobs["busy"]
    assert queue.is_exhausted
    queue.give_back(jobs["new"], 0)
    queue.give_back(jobs["stopped"], 1)
    with jobs["busy"].run.lock():
        queue.give_back(jobs["busy"], 2)  # another process was faster
    assert queue.failed == [jobs["stopped"]]
    assert queue.take() is jobs["busy"]
    assert queue.num_done == 3


def test_a_job_that_another_process_has_finished_did_not_fail(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", "running")
    queue = Queue([job])
    assert queue.take() is job
    job.run.write_status("finished")
    queue.give_back(job, 2)
    assert queue.failed == []


def test_progress_covers_the_sweep_and_every_end_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(launchers, "SHOW_SECONDS", 0)
    jobs = [make_job(tmp_path / name, "running") for name in ("a", "b")]
    source = Script(tmp_path, 2)
    with show_progress(source) as show:
        show(jobs, [])
        jobs[0].run.write_status("failed", reason="Out of GPU memory")
        source.ended.append(("a", 1))
        show(jobs[1:], jobs[:1])
    captured = capsys.readouterr()
    assert "0 of 2 jobs done  25 %" in captured.err  # a quarter of each
    assert "25%, 25%" in captured.err
    assert "1 of 2 jobs done  62 %" in captured.err
    assert "failed                     9 s  a: a\n" in captured.out
    assert f"\n  Out of GPU memory (see {tmp_path / 'a.log'})\n" in captured.out
