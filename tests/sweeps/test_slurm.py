"""Sweeps on a real SLURM, skipped unless `sinfo` works; `test_slurm_launcher` uses a fake one."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fashion_lit.commands.train import main
from fashion_lit.runs.directory import RunDirectory

CLOCKS = ("seconds", "train/images_per_second")


def is_slurm_here() -> bool:
    if shutil.which("sinfo") is None:
        return False
    done = subprocess.run(["sinfo", "-h", "-o", "%a"], capture_output=True, text=True, timeout=60)
    return done.stdout.startswith("up")


needs_slurm = pytest.mark.skipif(not is_slurm_here(), reason="needs a SLURM that answers sinfo")


def test_without_slurm_it_is_refused(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    place = [f"output_root={tmp_path.as_posix()}", "launcher=slurm"]
    assert main(["-m", *small, *place, "seed=0,1"]) == 2
    assert "Expected the command `sbatch` for launcher=slurm" in capsys.readouterr().err


def squeue(*columns: str) -> list[list[str]]:
    command = ["squeue", "--me", "-h", "-r", "-o", " ".join(columns)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@needs_slurm
def test_requeued_and_timed_out_jobs_end_bit_identical_to_local_ones(
    tmp_path: Path, small: list[str]
) -> None:
    arguments = [*small, "model.network.widths=[8,16,32]", "data.num_train=2100", "sweep_name=s"]
    arguments += ["optimizer.lr=0.01,0.02", "trainer.max_epochs=4,90", "checkpoint.every_steps=9"]
    command = [sys.executable, "-m", "fashion_lit", "train", "-m", *arguments]
    slurm = ["launcher=slurm", "launcher.time_minutes=1", "launcher.warning_seconds=10"]
    slurm += ["launcher.cpus_per_task=1", f"output_root={(tmp_path / 'slurm').as_posix()}"]
    sweep_dir = tmp_path / "slurm" / "sweeps" / "s"
    began = time.monotonic()
    with (tmp_path / "slurm.log").open("wb") as log:
        process = subprocess.Popen([*command, *slurm], stdout=log, stderr=log)
    requeued = ""
    waiting_since: dict[str, float] = {}
    while process.poll() is None:
        time.sleep(1)
        assert time.monotonic() - began < 1200, (tmp_path / "slurm.log").read_text()
        running = [number for number, state in squeue("%i", "%T") if state == "RUNNING"]
        last = list(sweep_dir.glob("*max_epochs=90*/checkpoints/last.ckpt"))
        long_ones = [number for number in running if number.endswith(("_1", "_3"))]
        if not requeued and last and long_ones:  # a preemption
            requeued = long_ones[0]
            subprocess.run(["scontrol", "requeue", requeued], check=True)
        for number, reason in squeue("%i", "%r"):
            # SLURM delays a requeued job by two minutes, so that its previous processes can end.
            if reason != "BeginTime":
                waiting_since.pop(number, None)
            elif time.monotonic() - waiting_since.setdefault(number, time.monotonic()) > 15:
                subprocess.run(["scontrol", "update", f"jobid={number}", "starttime=now"])
    text = (tmp_path / "slurm.log").read_text()
    assert process.returncode == 0, text
    print(text)
    logs = {p.name: p.read_text() for p in (sweep_dir / ".slurm").glob("*_log.out")}
    messages = "".join(logs.values())
    print(messages)
    assert requeued
    assert "this job is timed-out" in messages
    assert "Bypassing signal SIGTERM" in messages

    local = [*command, f"output_root={(tmp_path / 'local').as_posix()}"]
    subprocess.run(local, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    runs = [RunDirectory(path.parent) for path in sweep_dir.glob("*/config.yaml")]
    assert len(runs) == 4
    for run in runs:
        expected = RunDirectory(tmp_path / "local" / "sweeps" / "s" / run.path.name)
        states = [torch.load(r.last_checkpoint)["state_dict"] for r in (run, expected)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
        for key, value in expected.metrics.items():
            assert key in CLOCKS or run.metrics[key] == value, key
