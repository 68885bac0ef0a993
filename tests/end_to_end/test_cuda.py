"""Tests that need a GPU: pytest -m cuda -n 1. The GPU check in tests/gpu/ runs them, too."""

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_kills import SETTINGS, assert_equal, check_kills

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.train import main
from fashion_lit.data.batches import to_input
from fashion_lit.runs.directory import RunDirectory

Train = Callable[..., RunDirectory]
ON_GPU = ["trainer.accelerator=cuda", "trainer.max_epochs=2"]
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "tf32"])
@pytest.mark.parametrize("recipe", ["model=fast_cnn", "experiment=report_b"])
def test_two_epochs_learn(recipe: str, precision: str, train: Train) -> None:
    run = train(recipe, *ON_GPU, f"precision={precision}", "data.num_train=1300")
    assert run.metrics["train/accuracy"] > 0.2  # twice chance
    assert run.metrics["cuda/max_allocated_gib"] > 0
    state = torch.load(run.last_checkpoint, map_location="cpu")["state_dict"]
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gradients_are_clipped(optimizer: str, precision: str, train: Train) -> None:
    clip = ["trainer.gradient_clip_val=1", f"precision={precision}"]
    assert train(*ON_GPU, *clip, f"optimizer={optimizer}").status["state"] == "finished"


@pytest.mark.parametrize(
    "settings",
    [
        ["precision=fp16", "trainer.log_every_n_steps=2"],
        ["precision=bf16"],
        ["model=report_cnn", "precision=fp16", "data.image_size=32"],
        ["model=resnet18", "data.image_size=32", "model.pretrained=false", "optimizer.lr=0.01"],
    ],
    ids=["fp16", "bf16", "report_cnn", "resnet18"],
)
def test_a_killed_run_ends_bit_identical_to_an_uninterrupted_one(
    settings: list[str], tmp_path: Path
) -> None:
    exactly = ["trainer.accelerator=cuda", "trainer.deterministic=true"]
    kills = [("step", 7), ("validation", 2), ("save", 2)]
    check_kills(tmp_path, [*SETTINGS, *settings, *exactly], kills)
    scalers = []
    for name in ("whole", "killed"):
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", map_location="cpu")
        scalers.append(checkpoint.get("MixedPrecision", {}))
    assert_equal(*scalers, path="scaler")
    assert bool(scalers[0]) == ("precision=fp16" in settings)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_small_network_learns_from_a_larger_one(precision: str, train: Train) -> None:
    more = ["data.num_train=1300", f"precision={precision}"]
    teacher = train(*ON_GPU, *more, "data.image_size=32", "data.device=cpu")
    student = train(
        *ON_GPU, *more, f"teacher={teacher.path.as_posix()}", "model.network.widths=[8,16,32]"
    )
    assert student.metrics["train/accuracy"] > 0.15
    assert student.metrics["cuda/max_allocated_gib"] > 0


@pytest.mark.parametrize("data_device", ["auto", "cuda", "cpu"])
def test_evaluations_on_gpu_and_cpu_agree(data_device: str, train: Train, tmp_path: Path) -> None:
    more = ["data.num_train=2300", "data.num_test=1000", "data.val_size=1000"]
    run = train(*ON_GPU, *more, f"data.device={data_device}", "precision=bf16")
    places = [tmp_path / "gpu", tmp_path / "cpu"]
    assert evaluate([str(run.path), "--output", str(places[0])]) == 0
    command = [sys.executable, "-m", "fashion_lit", "evaluate", str(run.path), "--output"]
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, str(places[1])], env=without, check=True, timeout=300)
    found = [json.loads((place / "metrics.json").read_text()) for place in places]
    for split in ("val", "test"):
        accuracies = [metrics[f"{split}/accuracy"] for metrics in (*found, run.metrics)]
        assert max(accuracies) - min(accuracies) <= 0.002


def test_a_run_trained_on_a_gpu_can_be_tested_without_one(train: Train) -> None:
    run = train(*ON_GPU, "test=false")
    command = [sys.executable, "-m", "fashion_lit", "train", f"run_dir={run.path.as_posix()}"]
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "test=true"], env=without, check=True, timeout=300)
    assert 0 <= run.metrics["test/accuracy"] <= 1


@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
@pytest.mark.parametrize("recipe", ["model=fast_cnn", "experiment=report_b"])
def test_a_compiled_network_trains_to_a_similar_loss(recipe: str, mode: str, train: Train) -> None:
    few = [*ON_GPU, recipe, "precision=fp32", "trainer.benchmark=false", "optimizer.lr=1e-3"]
    runs = [train(*few), train(*few, f"trainer.compile={mode}")]
    losses = [run.metrics["train/loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)  # dropout draws differ


def test_two_jobs_share_one_gpu(tmp_path: Path, small: list[str]) -> None:
    settings = [s for s in small if not s.startswith("trainer.accelerator")]
    sweep = ["-m", "seed=0,1", "sweep_name=s", "launcher=parallel", "launcher.num_jobs=2"]
    place = f"output_root={tmp_path.as_posix()}"
    assert main([*settings, "trainer.accelerator=cuda", *sweep, place]) == 0
    folder = tmp_path / "sweeps" / "s"
    states = [RunDirectory(path.parent).status["state"] for path in folder.glob("*/status.json")]
    assert states == ["finished"] * 2
    for log in folder.glob("*.log"):
        assert torch.cuda.get_device_name() in log.read_text()


def test_no_line_waits_for_the_gpu_at_every_step(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def show(message: Warning | str, *_: object, **__: object) -> None:
        stack = traceback.extract_stack()
        in_a_step = any("training_epoch_loop" in f.filename and f.name == "advance" for f in stack)
        if "synchroniz" in str(message) and in_a_step:
            own = [f for f in stack if f"{os.sep}fashion_lit{os.sep}" in f.filename]
            waits.append(f"{own[-1].filename}:{own[-1].lineno} {own[-1].name}")

    monkeypatch.setattr(warnings, "showwarning", show)
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        train(*ON_GPU, "data.batch_size=10", "trainer.log_every_n_steps=1000")
        # Each of the 2 epochs copies its batch order to the GPU once. The loss is read once, for
        # the only logged point, at the first of 40 steps.
        assert max(Counter(waits).values(), default=0) <= 2, waits
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_resizing_gives_the_same_with_deterministic_algorithms() -> None:
    images = torch.randint(0, 256, (8, 28, 28), dtype=torch.uint8, device="cuda")
    settings = {"image_size": 224, "normalize": True}
    usual = to_input(images, **settings)  # type: ignore[arg-type]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(to_input(images, **settings), usual)  # type: ignore[arg-type]
    finally:
        torch.use_deterministic_algorithms(False)
