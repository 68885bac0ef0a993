"""What surrounds a run and must neither change nor harm it: outputs, pipes, variables, places."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interruptions import stop_at
from torchvision.models import resnet18

from fashion_lit.commands.benchmark import main as benchmark
from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.train import main
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.directory import RunDirectory

Train = Callable[..., RunDirectory]
MODULE = [sys.executable, "-m", "fashion_lit"]


def test_an_evaluation_does_not_replace_a_runs_files(
    finished_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished_run.metrics_file.read_bytes()
    assert evaluate([str(finished_run.path), "--output", str(finished_run.path)]) == 2
    assert "is a run's, and files of the run would be replaced" in capsys.readouterr().err
    assert finished_run.metrics_file.read_bytes() == before


@pytest.mark.parametrize("command", [evaluate, benchmark], ids=["evaluate", "benchmark"])
def test_an_output_that_cannot_be_written_is_refused_at_once(
    command: Callable[[list[str]], int],
    finished_run: RunDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    arguments = [str(finished_run.path)] if command is evaluate else ["--data", "synthetic"]
    assert command([*arguments, "--output", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_files_of_others_survive_a_resume(train: Train) -> None:
    run = train("trainer.max_epochs=2", "scheduler=constant", "test=false")
    movie = run.path / "movie.mkv.part"
    movie.touch()
    assert main([f"run_dir={run.path.as_posix()}", "trainer.max_epochs=3"]) == 0
    assert movie.exists()


def test_pictures_replace_a_symbolic_link_and_not_its_target(
    finished_run: RunDirectory, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    output = tmp_path / "out"
    output.mkdir()
    try:
        (output / "curves.png").symlink_to(target)
    except OSError:
        pytest.skip("this system lets nobody make a symbolic link")
    assert evaluate([str(finished_run.path), "--output", str(output)]) == 0
    assert target.read_text() == "kept"
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_reader_that_goes_away_does_not_end_a_run(small: list[str], tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    process = subprocess.Popen(
        [*MODULE, "train", *small, "test=false", f"run_dir={run.path.as_posix()}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert run.status["state"] == "finished"


@pytest.mark.parametrize("command", ["leaderboard", "evaluate"])
def test_a_terminal_without_the_characters_ends_no_command(
    command: str, finished_run: RunDirectory, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run.path, tmp_path / "größer ≈ 2 → 日本")
    done = subprocess.run(
        [*MODULE, command, str(tmp_path if command == "leaderboard" else run)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "1"},
        {"SLURM_PROCID": "1"},
        {"SLURM_NTASKS": "4"},
        {"RANK": "x", "WORLD_SIZE": "nonsense"},
    ],
)
def test_ranks_that_a_shell_has_left_are_ignored(
    variables: dict[str, str], small: list[str], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    done = subprocess.run(
        [*MODULE, "train", *small, "test=false", f"run_dir={run.path.as_posix()}"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Ignoring {next(iter(variables))}=" in done.stdout
    assert run.status["state"] == "finished"


def test_a_trial_variable_of_nonsense_is_named(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setenv("FASHION_LIT_TRIAL", "nonsense")
    assert main(small) == 2
    assert "FASHION_LIT_TRIAL" in capsys.readouterr().err


def test_places_are_recorded_absolute(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train("test=false")
    assert "root" not in run.config["data"]  # drawn data has no place
    from fashion_lit.runs.resume import with_absolute_paths

    config = {
        "data": {"root": "here", "mirrors": ["there", "http://x/"]},
        "model": {"weights": "w"},
    }
    absolute = with_absolute_paths(config)
    assert absolute["data"]["root"] == str(tmp_path / "here")
    assert Path(absolute["data"]["mirrors"][0]).is_absolute()
    assert absolute["data"]["mirrors"][1] == "http://x/"
    assert absolute["model"]["weights"] == str(tmp_path / "w")


@pytest.mark.parametrize("setting", ["output_root=''", "run_dir=''"])
def test_an_empty_place_is_refused(
    setting: str, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, setting]) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err


def stopped_run(small: list[str], path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Return a run that was stopped in its second epoch."""
    with monkeypatch.context() as patch:
        stop_at(patch, "training_step", 6)
        settings = ["trainer.max_epochs=2", "test=false", f"run_dir={path.as_posix()}"]
        assert main([*small, *settings]) == 130
    return RunDirectory(path)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(bytes([content[0] ^ 4]) + content[1:])


@pytest.mark.parametrize("how", ["deleted", "cut", "flipped"])
@pytest.mark.parametrize("piece", ["best", "events", "config", "status"])
def test_a_lost_piece_is_restored_or_named(
    piece: str,
    how: str,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = stopped_run(small, tmp_path / "run", monkeypatch)
    (events,) = run.path.glob("events.*")
    pieces = {
        "best": run.best_checkpoint,
        "events": events,
        "config": run.config_file,
        "status": run.status_file,
    }
    config = run.config
    damage(pieces[piece], how)
    code = main([f"run_dir={run.path.as_posix()}"])
    output = capsys.readouterr()
    if piece in ("config", "status"):
        assert code == 0, output.err
        assert run.config == config
        assert run.status["state"] == "finished"
    else:
        assert code == 2
        assert pieces[piece].name in output.err
        assert "Traceback" not in output.err


def test_a_run_whose_lock_file_is_removed_saves_and_stops(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDirectory(tmp_path / "run")
    original = ImageClassifier.training_step
    removed = []

    def remove(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            with suppress(PermissionError):  # Windows forbids it
                run.lock_file.unlink()
                removed.append(batch_idx)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", remove)
        code = main([*small, "test=false", f"run_dir={run.path.as_posix()}"])
    assert code == (1 if removed else 0)
    assert ("lock file to stay, but it was removed" in capsys.readouterr().err) == bool(removed)
    assert run.last_checkpoint.exists()
    assert main([f"run_dir={run.path.as_posix()}"]) == 0
    assert run.status["state"] == "finished"


def test_relative_weights_may_be_typed_again(
    train: Train, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(resnet18(weights=None).state_dict(), "weights.pth")
    settings = ["model=resnet18", "data.image_size=32", "model.weights=weights.pth", "test=false"]
    run = train(*settings, "trainer.limit_train_batches=1")
    assert run.config["model"]["weights"] == str(tmp_path / "weights.pth")
    again = [*small, *settings, "trainer.limit_train_batches=1", f"run_dir={run.path.as_posix()}"]
    assert main(again) == 0
    config = run.config  # as an earlier version wrote it
    run.write_config(config | {"model": config["model"] | {"weights": "weights.pth"}})
    assert main(again) == 0
