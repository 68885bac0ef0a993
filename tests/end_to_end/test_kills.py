"""A run that is killed repeatedly and resumed ends bit-identical to an uninterrupted one.

The long version makes 65 kills over thirteen runs: pytest -m long -s
"""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion_lit.runs.directory import RunDirectory

SETTINGS = [
    "data=synthetic",
    "data.num_train=700",
    "data.num_test=101",
    "data.val_size=170",
    "data.batch_size=50",
    "data.eval_batch_size=40",
    "augment=flip_shift_erase",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
    "checkpoint.every_steps=4",
]
STEPS = 11  # per epoch
CNN = ["model=fast_cnn"]
RESNET = ["model=resnet18", "data.image_size=32", "model.pretrained=false", "optimizer.lr=0.01"]
DROPS = ["model=wide_resnet", "model.network.depth=10", "model.network.width=1",
         "model.network.dropout=0.2", "model.network.drop_path=0.5", "model.network.attention=cbam",
         "optimizer.lr=0.01"]  # fmt: skip
# Measured times, which differ between equal runs.
TIMES = ("seconds", "train/images_per_second")
KILLED = 9 if os.name == "nt" else -9  # the exit code; on Windows os.kill calls TerminateProcess
HERE = Path(__file__).parent


def start(run: RunDirectory, settings: list[str], place: str, number: int) -> int:
    """Run fashion-lit in a separate process; returns its exit code."""
    command = [sys.executable, str(HERE / "killed_train.py"), place, str(number), "train"]
    command += [f"run_dir={run.path.as_posix()}", *settings]
    return subprocess.run(command, capture_output=True, timeout=300, check=False).returncode


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    """Assert that nested values are equal, with bit-identical tensors."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def training_state(path: Path) -> dict[str, Any]:
    """Load the part of a checkpoint that stops must not change: all but times, paths, counters."""
    checkpoint = torch.load(path, weights_only=True)
    keys = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    state = {key: checkpoint[key] for key in (*keys, "train_metrics", "FashionMNISTDataModule")}
    for name, callback in checkpoint["callbacks"].items():
        scores = {
            key: v for key, v in callback.items() if "path" not in key and "best_k" not in key
        }
        state[name] = scores
    metrics = checkpoint["run"]["metrics"]
    state["metrics"] = {key: value for key, value in metrics.items() if key not in TIMES}
    return state


def curves(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Read all TensorBoard scalars: {tag: [(step, value)]}, with measured times set to 0."""
    events = EventAccumulator(
        str(run.path), size_guidance={"scalars": 0}, purge_orphaned_data=False
    )
    scalars = {tag: events.Scalars(tag) for tag in events.Reload().Tags()["scalars"]}
    return {
        tag: [(event.step, 0.0 if tag in TIMES else event.value) for event in points]
        for tag, points in scalars.items()
    }


def assert_same_result(run: RunDirectory, reference: RunDirectory) -> None:
    """Assert that two runs left equal checkpoints, metrics, curves and settings."""
    for name in ("last.ckpt", "best.ckpt"):
        states = [training_state(r.checkpoint_dir / name) for r in (run, reference)]
        assert_equal(*states, path=name)
    kept = [{k: v for k, v in r.metrics.items() if k not in TIMES} for r in (run, reference)]
    assert_equal(*kept, path="metrics.json")
    assert_equal(curves(run), curves(reference), path="curves")
    assert run.config == reference.config
    assert run.status["state"] == "finished"
    assert not list(run.path.rglob("*.part"))


def draw_kills(seed: int, count: int) -> list[tuple[str, int]]:
    """Choose `count` kills: each place in turn, the number of the arrival at random."""
    draw = random.Random(seed)
    places = ["step", "validation", "save", "rename", "epoch", "test"]
    most = {"step": STEPS, "validation": 7, "save": 5, "rename": 3, "epoch": 1, "test": 3}
    draw.shuffle(places)
    chosen = [place for place in places * count if place != "test"][: count - 1]
    if seed % 2:
        chosen.append("test")  # last, since the run must get that far
    else:
        chosen.append("step")
    return [(place, draw.randint(1, most[place])) for place in chosen]


def check_kills(
    tmp_path: Path, settings: list[str], kills: list[tuple[str, int]], again: Sequence[str] = ()
) -> int:
    """Kill a run at each point, finish it and compare; returns the number of effective kills.

    `again` is typed whenever the run resumes.
    """
    reference, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    assert start(reference, settings, "never", 0) == 0
    typed = [settings, *([*again] for _ in kills)]
    codes = [start(run, typed[i], *kill) for i, kill in enumerate(kills)]
    print([(*kill, code) for kill, code in zip(kills, codes, strict=True)])
    assert set(codes) <= {KILLED, 0}
    assert start(run, [*again], "never", 0) == 0
    assert_same_result(run, reference)
    return codes.count(KILLED)


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        (
            [*CNN, "scheduler=one_cycle", "precision=bf16"],
            [("save", 2), ("validation", 3), ("step", 7)],
        ),
        (
            [*RESNET, "scheduler=plateau", "scheduler.patience=0", "precision=fp32"],
            [("step", 10), ("rename", 2)],
        ),
    ],
    ids=["cnn", "resnet"],
)
def test_killed_run_ends_bit_identical_to_an_uninterrupted_one(
    settings: list[str], kills: list[tuple[str, int]], tmp_path: Path
) -> None:
    assert check_kills(tmp_path, [*SETTINGS, *settings], kills) == len(kills)


LONG = {
    "cnn-one_cycle-bf16": [*CNN, "scheduler=one_cycle", "precision=bf16"],
    "cnn-plateau-fp32": [*CNN, "scheduler=plateau", "scheduler.patience=0", "precision=fp32"],
    "report_cnn-cosine-bf16": ["model=report_cnn", "optimizer=adamw", "optimizer.lr=1e-3",
                               "scheduler=cosine", "precision=bf16"],
    "resnet-one_cycle-fp32": [*RESNET, "scheduler=one_cycle", "precision=fp32"],
    "resnet-plateau-bf16": [*RESNET, "scheduler=plateau", "scheduler.patience=0",
                            "precision=bf16"],
    "cnn-accumulate-half-epochs": [*CNN, "precision=fp32", "trainer.accumulate_grad_batches=2",
                                   "trainer.val_check_interval=0.5", "checkpoint.every_steps=1"],
    "cnn-max_steps-step": [*CNN, "precision=fp32", "trainer.max_steps=27", "scheduler=step",
                           "scheduler.step_size=1", "checkpoint.every_steps=3"],
    "drop_path-fp32": [*DROPS, "precision=fp32", "model.ema_decay=0.9"],
    "resnet_small_stem-eca": ["model=resnet_small_stem", "model.network.widths=[16,32,64]",
                              "model.network.num_blocks=[1,1,1]", "model.network.attention=eca",
                              "precision=bf16", "optimizer.lr=0.01"],
    "densenet": ["model=densenet", "model.network.depth=16", "precision=fp32", "optimizer.lr=0.01"],
    "mobilenet_v2": ["model=mobilenet_v2", "model.network.width=0.25", "precision=fp32",
                     "optimizer.lr=0.01"],
    "vgg": ["model=vgg", "model.network.depth=11", "precision=bf16", "optimizer.lr=0.01"],
    "resnet9-se": ["model=resnet9", "model.network.width=8", "model.network.attention=se",
                   "model.network.drop_path=0.3", "precision=fp32", "optimizer.lr=0.01"],
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_many_kills(name: str, tmp_path: Path) -> None:
    seed = list(LONG).index(name)
    kills = draw_kills(seed, 5)
    assert check_kills(tmp_path, [*SETTINGS, *LONG[name]], kills) >= 4
