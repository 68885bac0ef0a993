import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from fashion_lit.errors import UserError
from fashion_lit.runs.directory import RunDirectory


def test_configuration_is_recorded_and_read_back(tmp_path: Path) -> None:
    config = {
        "seed": 0,
        "optimizer": {"lr": 1e-05, "betas": [0.9, 0.999]},
        "model": {"w": None},
        "trainer": {"max_epochs": 2},
    }
    run = RunDirectory(tmp_path / "a" / "run")
    with run.lock():
        assert not run.exists
        run.create(config)
    assert run.exists
    assert run.config == config


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(UserError, match=r"new or empty directory, or a run's, but .* other files"),
        RunDirectory(tmp_path).lock(),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_new_run_may_use_a_directory_with_only_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.0123456789abcdef0123456789abcdef.part").write_text("seed")
    run = RunDirectory(tmp_path)
    with run.lock():
        assert not run.exists


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_unreadable_configuration_is_reported(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"settings of a run in .*config\.yaml, but"):
        _ = RunDirectory(tmp_path).config


HOLDER = """
import sys, time
from pathlib import Path
from fashion_lit.runs.directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
with run.lock():
    run.create({"seed": 0})
    run.write_status("running")
    print("locked", flush=True)
    time.sleep(600)
"""


def test_lock_keeps_other_processes_out_and_ends_with_its_process(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        message = rf"but process {holder.pid} on .* is training in .*run; wait for it or stop it"
        with pytest.raises(UserError, match=message), run.lock():
            pass
        holder.kill()
    with run.lock():  # the killed process no longer holds the lock
        assert run.status["state"] == "running"


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_unwritable_directory_is_reported(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="Expected a writable run directory, but"),
        RunDirectory(tmp_path / place).lock(),
    ):
        pass


def test_status_keeps_its_progress(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.status == {}
    run.write_status("running", progress={"epoch": 3, "step": 120, "seconds": 7.5})
    run.write_status("failed", reason="out of memory")
    progress = {"epoch": 3, "step": 120, "seconds": 7.5}
    progress = {"state": "failed", "reason": "out of memory", **progress}
    assert progress.items() <= run.status.items()
    others = {"host", "process", "has_config_digest", "source_digest"}
    assert run.status.keys() - progress.keys() == others
    assert run.status.items() <= json.loads(run.status_file.read_text()).items()
    content = run.status_file.read_text()
    for old, new in (("120", "121"), ("failed", "finished"), ('"step"', '"stop"')):
        run.status_file.write_text(content.replace(old, new))
        assert run.status == {}


def test_rewind_removes_events_written_after_a_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for name in ("1.host", "2.host"):
        (tmp_path / f"events.out.tfevents.{name}").write_bytes(b"0123456789")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt.0123456789abcdef0123456789abcdef.part").touch()
    run.rewind({"events.out.tfevents.1.host": 4})
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"events.out.tfevents.1.host": b"0123"}
    assert not list(run.checkpoint_dir.iterdir())


def test_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(self: FileLock) -> None:  # as filelock does where flock is not supported
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    message = "it supports no file locks"
    with pytest.raises(UserError, match=message), RunDirectory(tmp_path).lock():
        pass
