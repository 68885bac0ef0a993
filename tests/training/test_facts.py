"""What an evaluation page says of a run."""

import os
from pathlib import Path

import pytest

from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import RECORD, read_checkpoint
from fashion_lit.training.facts import duration, hardware, software, start


@pytest.mark.parametrize(
    ("seconds", "epochs", "words"),
    [
        (0.2, 1, "1 epoch in less than a second"),
        (61, 2, "2 epochs in 1 minute 1 second"),
        (272.7, 14, "14 epochs in 4 minutes 33 seconds"),
        (3600, 14, "14 epochs in 1 hour"),
        (2 * 3600 + 17 * 60 + 31, 300, "300 epochs in 2 hours 17 minutes"),
    ],
)
def test_the_duration_is_in_words(seconds: float, epochs: int, words: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert duration(run) == ""
    run.write_status("running", progress={"epoch": epochs, "step": 1, "seconds": seconds})
    assert duration(run) == words


def test_the_start_is_that_of_the_first_event_file(run_copy: RunDirectory) -> None:
    for path in run_copy.path.glob("events.*"):
        path.unlink()
    os.utime(run_copy.config_file, (86_400 * 365, 86_400 * 365))
    assert start(run_copy).startswith(("1970-12-31 ", "1971-01-01 "))
    for seconds in (1_795_772_826, 1_795_900_000):
        (run_copy.path / f"events.out.tfevents.{seconds}.host.1.0").touch()
    assert start(run_copy).startswith(("2026-11-26 ", "2026-11-27 "))


def test_only_recorded_hardware_is_named(run_copy: RunDirectory) -> None:
    earlier = {"environment": {"threads": "2", "device": "cpu", "machine": "x86_64"}}
    assert hardware({}) == software({}) == ""
    assert hardware(earlier) == "CPU, 2 threads, x86_64"
    assert hardware(earlier | {"processor": "AMD EPYC"}) == "AMD EPYC, 2 threads, x86_64"
    gpu = {"device": "NVIDIA H100", "processes": "2", "torch": "2.11.0", "precision": "bf16-mixed"}
    assert hardware({"environment": gpu}) == "2 processes on NVIDIA H100"
    assert software({"environment": gpu}) == "PyTorch 2.11.0, precision bf16-mixed"
    record = read_checkpoint(run_copy.last_checkpoint)[RECORD]
    assert isinstance(record["processor"], str)
    assert "processor" not in record["environment"]  # no part of what a resume compares
