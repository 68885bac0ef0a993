"""Places that cannot be are refused in one sentence, and names of sweeps are used as typed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fashion_lit.commands import evaluate
from fashion_lit.commands.train import main
from fashion_lit.runs.directory import RunDirectory

LONG = "x" * 300
BAD_PLACES = ["file", "file/below", LONG, "", "???", "${foo}", "link", "link/x"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a file and, where the system has them, a dangling link."""
    (tmp_path / "file").touch()
    if os.name != "nt":
        (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", BAD_PLACES)
@pytest.mark.parametrize("key", ["run_dir", "output_root", "ckpt_path", "init_from", "teacher"])
def test_a_place_that_cannot_be_is_refused(
    key: str, value: str, place: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.iterdir())
    assert main([*small, f"{key}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fashion-lit train: ")
    assert error.count("\n") == 1
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("value", ["file", "file/below", LONG, "link/x"])
def test_an_output_that_cannot_be_is_refused(
    value: str, place: Path, finished_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(finished_run.path), "--output", value]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the current directory of a process")
def test_a_deleted_current_directory_is_named(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
        "from fashion_lit.__main__ import main; sys.argv = ['fashion-lit', 'train']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["", "null", "/absolute", "a/b", "../x", "..", "a,b", LONG, "a\\b", "???", "${seed}"]
)
def test_a_name_that_cannot_be_is_refused(
    name: str, place: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "-m", "seed=0", f"sweep_name={name}"]) == 2
    assert "`sweep_name`" in capsys.readouterr().err
    assert not (place / "sweeps").exists()


@pytest.mark.parametrize("name", ["007", "true", "grün", "it's", "a b", 'a"b', "a=b", "1e3"])
def test_a_name_is_used_as_typed_and_the_printed_command_finds_its_jobs(
    name: str,
    place: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A job's process costs seconds, and the names are what matters here.
    def run_nothing(self: object, source: object, signals: object) -> None:
        del self, source, signals

    monkeypatch.setattr("fashion_lit.sweeps.launchers.LocalLauncher.run", run_nothing)
    command = [*small, "-m", "seed=0", f"sweep_name={name}"]
    main(command)
    assert (place / "sweeps" / name).is_dir()
    printed = capsys.readouterr().out.rpartition("fashion-lit train ")[2].splitlines()[0]
    main(shlex.split(printed))
    assert [path.name for path in (place / "sweeps").iterdir()] == [name]
