"""Distributed data parallel with gloo processes on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fashion_lit.runs.directory import RunDirectory

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


def test_test_metrics_do_not_depend_on_the_number_of_ranks(finished_run: RunDirectory) -> None:
    alone = evaluate(finished_run.best_checkpoint, 1)
    assert alone["num_images"] == 101
    together = evaluate(finished_run.best_checkpoint, 3)
    assert together.pop("test/loss") == pytest.approx(alone["test/loss"], rel=1e-6)
    assert together == {k: v for k, v in alone.items() if k != "test/loss"}


def test_ranks_train_one_model_in_one_run_directory(tmp_path: Path, small: list[str]) -> None:
    num_ranks = 3
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


def test_stopped_ranks_resume_bit_identically(tmp_path: Path, small: list[str]) -> None:
    settings = [*small, "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=3"]
    settings += ["scheduler=plateau", "checkpoint.every_steps=1", "data.num_train=1300"]
    whole, stopped = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "stopped")
    command = [sys.executable, "-m", "fashion_lit", "train"]
    run(*command, *settings, f"run_dir={whole.path.as_posix()}")

    place = f"run_dir={stopped.path.as_posix()}"
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [*command, *settings, place],
        env=ENVIRONMENT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    while not stopped.previous_checkpoint.exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # to every rank, at different steps, as a terminal does
    assert process.wait(timeout=120) == 130, (tmp_path / "log").read_text()
    assert stopped.status["state"] == "interrupted"
    assert stopped.status["step"] < whole.status["step"]

    run(*command, place)
    weights = [torch.load(r.last_checkpoint)["state_dict"] for r in (stopped, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    clocks = ("seconds", "train/images_per_second")
    for name, value in whole.metrics.items():
        assert name in clocks or stopped.metrics[name] == value, name


def test_ranks_train_together_inside_a_sweep(tmp_path: Path, small: list[str]) -> None:
    settings = [*small, "trainer.devices=2", "trainer.strategy=ddp", "seed=0,1", "sweep_name=s"]
    place = f"output_root={tmp_path.as_posix()}"
    output = run(sys.executable, "-m", "fashion_lit", "train", "-m", *settings, place)
    assert output.count("\nfinished ") == 2  # rank 1 does not start the sweep again
    folders = list((tmp_path / "sweeps" / "s").glob("*/"))
    assert [RunDirectory(folder).status["state"] for folder in folders] == ["finished"] * 2


def test_ranks_freeze_and_unfreeze_a_backbone(tmp_path: Path, small: list[str]) -> None:
    ranks = ["trainer.devices=2", f"run_dir={(tmp_path / 'run').as_posix()}"]
    model = ["model=resnet18", "model.pretrained=false", "data.image_size=32", "test=false"]
    thaw = ["model.freeze_backbone=true", "model.unfreeze_epoch=1", "trainer.max_epochs=2"]
    few = ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "optimizer=sgd"]
    run(sys.executable, "-m", "fashion_lit", "train", *small, *ranks, *model, *thaw, *few)
    assert RunDirectory(tmp_path / "run").status["state"] == "finished"
