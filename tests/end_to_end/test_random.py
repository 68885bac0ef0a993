"""Settings and faults drawn at random, in processes that fork; see the two scripts.

pytest -s -m long tests/end_to_end/test_random.py --random-seed 7 --fault-rounds 200
pytest -s tests/end_to_end/test_random.py --setting-draws 5000
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def run_script(name: str, *arguments: object) -> None:
    """Run a script of this folder; what it prints is shown with -s, or if it fails."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_settings_drawn_at_random(pytestconfig: pytest.Config) -> None:
    seed, draws = pytestconfig.getoption("random_seed"), pytestconfig.getoption("setting_draws")
    run_script("settings_fuzz.py", "--seed", seed, "--draws", draws)


@pytest.mark.long
def test_faults_drawn_at_random(pytestconfig: pytest.Config) -> None:
    seed, rounds = pytestconfig.getoption("random_seed"), pytestconfig.getoption("fault_rounds")
    run_script("fault_walk.py", "--seed", seed, "--rounds", rounds)
