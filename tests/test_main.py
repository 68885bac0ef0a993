import subprocess
import sys
from pathlib import Path

import pytest

from fashion_lit import __version__
from fashion_lit.__main__ import COMMANDS
from fashion_lit.text import command_for_process


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fashion_lit", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_unknown_command_lists_the_known_ones(tmp_path: Path) -> None:
    done = run("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert "Expected one of the commands train" in done.stderr
    assert "but got 'trian'" in done.stderr


def test_console_script_equals_python_m(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("fashion-lit")
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == run("--version", cwd=tmp_path).stdout


def test_hydras_own_flags_work_from_anywhere(tmp_path: Path) -> None:
    shown = run("train", "--cfg", "job", "experiment=report_b", cwd=tmp_path)
    assert shown.returncode == 0
    assert "name: report_cnn" in shown.stdout
    assert run("train", "--help", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())


def test_another_process_imports_what_this_one_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fashion_lit.py").write_text("raise RuntimeError('a module of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere", *sys.path])  # as a console script has it
    done = subprocess.run(command_for_process("--version"), capture_output=True, text=True)
    assert done.stdout == f"fashion-lit {__version__}\n"
    for place in ("", str(tmp_path)):  # as a notebook and `python -m` have it
        monkeypatch.setattr(sys, "path", [place, *sys.path])
        assert "-P" not in command_for_process("--version")
