"""The readers of status.json, metrics.json and config.yaml, and commands on damaged ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.leaderboard import main as leaderboard
from fashion_lit.commands.train import main as train
from fashion_lit.errors import UserError
from fashion_lit.evaluation.curves import read_curves
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.records import MAX_BYTES, read_metrics, read_settings, read_status
from fashion_lit.sweeps.ranking import read_run

HAS_FIFOS = hasattr(os, "mkfifo")  # Windows has none
KINDS = ["missing", "directory", "dangling", "empty", "NaN", *(["fifo"] if HAS_FIFOS else [])]
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(20)
)
METRICS = [
    "",
    "[]",
    "null",
    "7",
    '{"val/accuracy": NaN}',
    '{"val/accuracy": Infinity}',
    '{"val/accuracy": 1' + "0" * 400 + "}",
    '{"val/accuracy": 1' + "0" * 5000 + "}",
    '{"val/accuracy": "0.9"}',
    '{"val/accuracy": true}',
    '{"val/accuracy": [0.9]}',
    "[" * 100_000,
    "\udc80",
    " " * (MAX_BYTES + 1),
]
STATUSES = [
    "",
    "[]",
    '{"state": 7}',
    '{"state": ["finished"]}',
    '{"state": "done"}',
    '{"state": "finished", "epoch": "2"}',
    '{"state": "finished", "epoch": null}',
    '{"state": "finished", "seconds": NaN}',
    '{"state": "finished", "step": -1}',
    '{"state": "finished", "reason": {}}',
    '{"state": "finished", "files": 3}',
    '{"state":' * 100_000,
]
CONFIGS = [
    "",
    "7",
    "[seed]",
    "seed: 0",
    "trainer: {max_epochs: 3}",
    "seed: x\ntrainer: {max_epochs: 3}",
    "seed: 0\ntrainer: {max_epochs: .inf}",
    "seed: 0\ntrainer: {max_epochs: true}",
    "seed: 1" + "0" * 400 + "\ntrainer: {max_epochs: 3}",
    "seed: 1" + "0" * 5000 + "\ntrainer: {max_epochs: 3}",
    "seed: 0\ntrainer: [1]",
    "seed: 0\ntrainer: {max_epochs: 3}\nmodel: x",
    "seed: 0\ntrainer: {max_epochs: 3}\nmodel: &m {a: *m}",
    "seed: 0\ntrainer: {max_epochs: 3}\n" + BOMB,
    "seed: 0\ntrainer: {max_epochs: 3}\n? [1, 2]\n: x",
    "seed: 0\ntrainer: {max_epochs: 3}\nx: 2026-01-01",
    "seed: 0\nseed: !!python/object/apply:os.abort []",
    "[" * 100_000,
    "a: *b",
    "seed: 0\ntrainer: {max_epochs: 3}\n# sha256: 0",
]


@pytest.mark.parametrize(
    ("read", "texts"),
    [(read_metrics, METRICS), (read_status, STATUSES), (read_settings, CONFIGS)],
    ids=["metrics", "status", "config"],
)
def test_nonsense_is_named(
    read: Callable[[Path], object], texts: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    for text in texts:
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=r"Expected .*file") as raised:
            read(path)
        assert len(str(raised.value)) < 500, text[:50]
        assert "\n" not in str(raised.value), text[:50]


@pytest.mark.parametrize("name", ["metrics.json", "status.json", "config.yaml"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_directory_ends_no_leaderboard(
    name: str,
    kind: str,
    finished_run: RunDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("damaged", "good"):
        (tmp_path / folder).mkdir()
        for file in finished_run.path.glob("*.*"):
            shutil.copy(file, tmp_path / folder)
    path = tmp_path / "damaged" / name
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "empty" | "NaN":
            path.write_text("" if kind == "empty" else "NaN")
    damaged = read_run(path.parent)
    assert (damaged.state, damaged.metrics) == ("damaged", {})
    assert name in damaged.note
    assert leaderboard([str(tmp_path)]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [("name: fast_cnn", "name: x"), ("precision: 32-true", "precision: 7"), ("data:", "date:")],
)
def test_an_earlier_versions_settings_are_checked(
    old: str,
    new: str,
    run_copy: RunDirectory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_copy.status_file.unlink()
    text = run_copy.config_file.read_text().partition("# sha256")[0]
    assert old in text
    run_copy.config_file.write_text(text.replace(old, new, 1))
    assert evaluate([str(run_copy.path)]) == 2
    error = capsys.readouterr().err
    assert "config.yaml" in error
    assert error.count("\n") == 1


def test_odd_event_files_stop_no_reader(run_copy: RunDirectory) -> None:
    expected = read_curves(run_copy.path)
    assert expected["val/accuracy"]
    if HAS_FIFOS:
        os.mkfifo(run_copy.path / "events.out.tfevents.1.fifo")
    (run_copy.path / "events.out.tfevents.2.folder").mkdir()
    (run_copy.path / "events.out.tfevents.3.noise").write_bytes(bytes(range(256)))
    (run_copy.path / "events.out.tfevents.4.huge").write_bytes(b"\xff" * 100)
    assert read_curves(run_copy.path) == expected
    assert train([f"run_dir={run_copy.path.as_posix()}"]) == 0


def test_a_sweep_goes_on_beside_a_damaged_job(
    tmp_path: Path, small: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*small, "-m", "seed=0,1", "sweep_name=s", f"output_root={tmp_path.as_posix()}"]
    command += ["trainer.max_epochs=1"]
    assert train(command) == 0
    jobs = sorted((tmp_path / "sweeps" / "s").glob("*-????????"))
    (jobs[0] / "metrics.json").write_text('{"val/accuracy": 1' + "0" * 400 + "}")
    (jobs[1] / "config.yaml").write_text("a: &a [*a]")
    assert train(command) == 0  # both are written again, from their checkpoints
    assert all(RunDirectory(job).is_complete for job in jobs)
    (jobs[1] / "checkpoints" / "best.ckpt").write_bytes(b"")
    (jobs[1] / "status.json").unlink()
    assert train(command) == 1
    assert capfd.readouterr().out.count("finished before") == 1
