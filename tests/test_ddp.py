"""Distributed data parallel, on gloo processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fashion_lit.run_directory import RunDirectory

SCRIPT = Path(__file__).with_name("ddp_evaluate.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo needs libuv's sockets on Windows")


def run(*command: str) -> str:
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluate(checkpoint: Path, num_ranks: int) -> dict[str, float]:
    output = run(sys.executable, str(SCRIPT), str(checkpoint), str(num_ranks))
    (line,) = [line for line in output.splitlines() if line.startswith("METRICS ")]
    return json.loads(line.removeprefix("METRICS "))


def test_any_number_of_ranks_gives_the_same_test_metrics(finished_run: RunDirectory) -> None:
    alone = evaluate(finished_run.best_checkpoint, 1)
    assert alone["num_images"] == 101
    for num_ranks in (2, 3):
        together = evaluate(finished_run.best_checkpoint, num_ranks)
        assert together.pop("test/loss") == pytest.approx(alone["test/loss"], rel=1e-6)
        assert together == {k: v for k, v in alone.items() if k != "test/loss"}


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_train_one_model_in_one_run_directory(
    num_ranks: int, tmp_path: Path, small: list[str]
) -> None:
    ranks = [f"trainer.devices={num_ranks}", "trainer.strategy=ddp", "data.eval_batch_size=17"]
    place = [f"output_root={tmp_path.as_posix()}"]
    output = run(sys.executable, "-m", "fashion_lit", "train", *small, *ranks, *place)
    (directory,) = (tmp_path / "runs").iterdir()
    result = RunDirectory(directory)
    assert result.status["state"] == "finished"
    assert output.count("1/1 ") == 1  # one table, not one for each rank
    assert result.status["step"] == -(-(200 // num_ranks) // 50)
    state = torch.load(result.best_checkpoint, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())
    alone = evaluate(result.best_checkpoint, 1)  # the same weights on one process
    assert alone["test/accuracy"] == result.metrics["test/accuracy"]
