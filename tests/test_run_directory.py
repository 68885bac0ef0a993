from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fashion_lit.errors import UserError
from fashion_lit.run_directory import RunDirectory, write_atomically


def test_configuration_is_recorded_once_and_read_back(tmp_path: Path) -> None:
    config = {"seed": 0, "optimizer": {"lr": 1e-05, "betas": [0.9, 0.999]}, "model": {"w": None}}
    run = RunDirectory.create(tmp_path / "a" / "run", config)
    assert run.config == config


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", {"seed": 0})
    with pytest.raises(UserError, match="already holds a run, and no run is ever overwritten"):
        RunDirectory.create(tmp_path / "run", {"seed": 1})
    assert RunDirectory(tmp_path / "run").config == {"seed": 0}


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"new or empty directory, but .* holds other files"):
        RunDirectory.create(tmp_path, {"seed": 0})


def test_exactly_one_of_many_processes_wins(tmp_path: Path) -> None:
    def claim(seed: int) -> bool:
        try:
            RunDirectory.create(tmp_path / "run", {"seed": seed})
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(32))) == 1


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_unwritable_place_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Expected a run directory that can be written, but"):
        RunDirectory.create(tmp_path / place, {"seed": 0})


def test_status_keeps_its_progress(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {"seed": 0})
    run.write_status("running", epoch=3, step=120)
    run.write_status("failed", reason="out of memory")
    assert run.status == {"state": "failed", "epoch": 3, "step": 120, "reason": "out of memory"}


def test_write_atomically_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two\n"
    assert list(tmp_path.iterdir()) == [path]
