"""Runs that are stopped, fail or run out of disk or memory: they report it and lose no progress."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fashion_lit.commands.train import main
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.resume import read_record

posix_only = pytest.mark.skipif(
    os.name == "nt", reason="Windows lacks these signals to other processes, and RLIMIT_FSIZE"
)
ENDLESS = ["trainer.max_epochs=1000", "test=false"]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fashion_lit", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@posix_only
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_stopped_process_saves_prints_how_to_resume_and_exits_with_the_signals_code(
    number: int, code: int, tmp_path: Path, small: list[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    process = start(*small, *ENDLESS, f"run_dir={run.path.as_posix()}")
    wait_for(run.last_checkpoint.exists, process)
    process.send_signal(number)
    out, error = process.communicate(timeout=120)
    assert process.returncode == code
    assert f"fashion-lit train run_dir={run.path.as_posix()}" in out
    assert "Stopping after this step" in error
    assert "Traceback" not in error
    assert run.status["state"] == "interrupted"
    assert run.status["reason"] == signal.Signals(number).name
    checkpoint = torch.load(run.last_checkpoint)
    assert run.status["step"] == checkpoint["global_step"] > 0
    assert run.status["epoch"] == checkpoint["epoch"]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: str, count: int) -> None:
    """Send this process SIGINT in the `count`th call of one of the classifier's step methods."""
    original, calls = getattr(ImageClassifier, step), []

    def stopping(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        if len(calls) == count:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, step, stopping)


@pytest.mark.parametrize(
    ("step", "count", "epochs", "steps"),
    [
        ("training_step", 2, 0, 2),
        ("training_step", 4, 0, 4),  # the epoch's last batch: stops in the validation after it
        ("validation_step", 2, 0, 4),
        ("validation_step", 3, 1, 4),  # the validation's last batch: stops before the next epoch
        ("validation_step", 8, 2, 8),  # validation of the best checkpoint, after all epochs
        ("test_step", 1, 2, 8),
    ],
)
def test_stopped_run_resumes_with_the_metrics_of_an_uninterrupted_one(
    step: str, count: int, epochs: int, steps: int, tmp_path: Path, small: list[str],
    monkeypatch: pytest.MonkeyPatch, finished_run: RunDirectory,
) -> None:  # fmt: skip
    run = RunDirectory(tmp_path / "run")
    arguments = [*small, "trainer.max_epochs=2", f"run_dir={run.path.as_posix()}"]
    with monkeypatch.context() as patch:
        stop_at(patch, step, count)
        assert main(arguments) == 130
    assert (run.status["epoch"], run.status["step"]) == (epochs, steps)
    assert main(arguments) == 0
    clocks = ("seconds", "train/images_per_second")
    assert run.metrics.keys() == finished_run.metrics.keys()
    for name, value in finished_run.metrics.items():
        assert name in clocks or run.metrics[name] == value, name


def test_second_ctrl_c_ends_at_once(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_twice(self: ImageClassifier, batch: Any, batch_idx: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    monkeypatch.setattr(ImageClassifier, "training_step", press_twice)
    run = RunDirectory(tmp_path / "run")
    assert main([*small, f"run_dir={run.path.as_posix()}"]) == 130
    assert run.status["state"] == "interrupted"
    assert not run.last_checkpoint.exists()


def test_exactly_one_of_two_processes_trains(tmp_path: Path, small: list[str]) -> None:
    run = RunDirectory(tmp_path / "run")
    arguments = [*small, "trainer.max_epochs=4", f"run_dir={run.path.as_posix()}"]
    processes = [start(*arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], outputs
    assert " is training in " in outputs[codes.index(2)][1]
    assert run.status["process"] == processes[codes.index(0)].pid


def test_non_finite_loss_fails_the_run_and_keeps_its_checkpoint(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original = ImageClassifier.loss

    def broken(self: ImageClassifier, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = original(self, logits, labels)
        return loss * float("nan") if self.training and self.trainer.global_step == 5 else loss

    monkeypatch.setattr(ImageClassifier, "loss", broken)
    run = RunDirectory(tmp_path / "run")
    settings = ["trainer.max_epochs=3", "trainer.log_every_n_steps=2"]
    assert main([*small, *settings, f"run_dir={run.path.as_posix()}"]) == 1
    error = capsys.readouterr().err
    assert "got NaN or infinity by step 6 (epoch 2)" in error
    assert "Lower optimizer.lr" in error
    assert "Traceback" not in error
    assert run.status["state"] == "failed"
    assert "NaN" in run.status["reason"]
    checkpoint = torch.load(run.last_checkpoint)
    assert checkpoint["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


def test_unexpected_error_prints_a_traceback_and_is_recorded(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(self: ImageClassifier, batch: Any, batch_idx: int) -> None:
        raise IndexError("a bad batch")

    monkeypatch.setattr(ImageClassifier, "training_step", broken)
    run = RunDirectory(tmp_path / "run")
    assert main([*small, f"run_dir={run.path.as_posix()}"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert run.status["state"] == "failed"
    assert run.status["reason"] == "IndexError: a bad batch"


def test_out_of_gpu_memory_is_one_sentence(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def hungry(self: ImageClassifier, batch: Any, batch_idx: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ImageClassifier, "training_step", hungry)
    assert main([*small, f"run_dir={(tmp_path / 'run').as_posix()}"]) == 1
    assert capsys.readouterr().err.startswith(
        "fashion-lit train: Out of GPU memory; lower data.batch_size"
    )


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from fashion_lit.commands.train import main
sys.exit(main(sys.argv[2:]))
"""


@posix_only
def test_full_disk_ends_in_one_sentence_and_keeps_the_previous_checkpoint(
    tmp_path: Path, small: list[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    place = f"run_dir={run.path.as_posix()}"
    settings = ["scheduler=constant", "model.network.widths=[8,16,32]"]
    assert main([*small, *settings, place]) == 0
    before = run.last_checkpoint.read_bytes()
    limit = len(before) // 2  # greatest file size in bytes
    command = [sys.executable, "-c", LIMITED, str(limit), place, "trainer.max_epochs=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr
    assert "MB), but: File too large. The checkpoint before it is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert run.status["state"] == "failed"
    assert run.last_checkpoint.read_bytes() == before
    assert not list(run.path.rglob("*.part"))
    read_record(run.last_checkpoint)
    assert main([place]) == 0  # without the limit
    assert run.status["epoch"] == 2


def test_early_stopping_says_that_it_ended_the_training(
    train: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    train("trainer.max_epochs=9", "early_stopping.patience=1", "optimizer.lr=1e-9", "averaging=swa")
    text = capsys.readouterr().out
    assert "Early stopping ended the training after 2 epochs: 1 in a row had no better " in text
    assert "No epoch was averaged, because the training ended before epoch 8; the trained" in text


@pytest.mark.parametrize("kind", ["early", "late"])
def test_early_stopping_holds_after_a_resume(
    kind: str, tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*small, "trainer.max_epochs=9", "early_stopping.patience=1", "optimizer.lr=1e-6"]
    whole, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "run")
    assert main([*settings, f"run_dir={whole.path.as_posix()}"]) == 0
    assert whole.status["epoch"] < 9
    with monkeypatch.context() as patch:
        stop_at(patch, *(("training_step", 6) if kind == "early" else ("test_step", 1)))
        assert main([*settings, f"run_dir={run.path.as_posix()}"]) == 130
    assert main([f"run_dir={run.path.as_posix()}"]) == 0
    assert run.status["epoch"] == whole.status["epoch"]
    assert run.metrics["val/loss"] == whole.metrics["val/loss"]
