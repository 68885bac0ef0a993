"""The GPU check in tests/gpu/ matches the code; run with --small, also without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parent / "gpu" / "check.py"


@pytest.mark.long
def test_the_small_gpu_check_succeeds(tmp_path: Path) -> None:
    """Takes about ten minutes."""
    command = [sys.executable, str(CHECK), "--small", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    summaries = {result["stage"]: result["said"] for result in map(json.loads, lines)}
    assert summaries["faults"].startswith("seen: none;")


def test_an_unknown_stage_is_refused_with_a_list_of_stages(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECK), "--out", str(tmp_path), "--stages", "env,foo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such stages: foo; there are env, default, fp16" in done.stderr
