"""The Python interface: the commands' results, errors as exceptions, and a process that goes on."""

import json
import os
import shutil
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fashion_lit
from fashion_lit import RunDirectory, UserError
from fashion_lit.api.launch import prepare
from fashion_lit.commands.leaderboard import main as leaderboard_command
from fashion_lit.evaluation.curves import TEST_GROUP
from fashion_lit.files import event_files
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.sweeps.jobs import Job, plan_jobs

TWO_EPOCHS = [
    "trainer.max_epochs=2",
    "tensorboard.pictures=true",
    "tensorboard.norms_every_steps=3",
]


def in_thread(*overrides: str) -> fashion_lit.Run:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fashion_lit.train, list(overrides)).result()


def assert_same_result(run: RunDirectory, other: RunDirectory) -> None:
    for name in ("best_checkpoint", "last_checkpoint"):
        one, two = (torch.load(getattr(r, name))["state_dict"] for r in (run, other))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name
    measured = ("seconds", "train/images_per_second")
    one, two = ({k: v for k, v in r.metrics.items() if k not in measured} for r in (run, other))
    assert one == two


def state() -> list[Any]:
    filters = warnings.filters[:]
    generators = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # type: ignore[index]
    flags = [torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()]
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    return [filters, *generators, *flags, *handlers, dict(os.environ), sys.argv[:], Path.cwd()]


def test_an_interrupted_run_ends_as_the_commands_whatever_ran_before(
    finished_run: RunDirectory, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state()
    place = f"output_root={tmp_path.as_posix()}"
    in_thread(*small, place, "seed=5", "trainer.deterministic=true", "precision=bf16")
    original, calls = ImageClassifier.training_step, []

    def stopping(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        if len(calls) == 6:  # the second epoch's second step
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    place = f"run_dir={(tmp_path / 'run').as_posix()}"
    with monkeypatch.context() as patched:
        patched.setattr(ImageClassifier, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
            fashion_lit.train([*small, *TWO_EPOCHS, place])
    assert state() == before
    stopped = fashion_lit.load_run(tmp_path / "run")
    assert stopped.files.status["state"] == "interrupted"
    assert stopped.metrics == {}
    assert "1 of 2 epochs" in stopped.notice
    assert stopped.checkpoint == stopped.files.last_checkpoint
    torch.set_default_dtype(torch.float64)
    try:
        resumed = in_thread(place)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert state() == before
    assert_same_result(resumed.files, finished_run)
    assert resumed.config == finished_run.config
    speed = "train/images_per_second"
    curves, expected = (r.curves for r in (resumed, fashion_lit.load_run(finished_run.path)))
    pd.testing.assert_frame_equal(curves.drop(columns=speed), expected.drop(columns=speed))
    again = fashion_lit.train([place])  # finished: nothing to do
    assert again.metrics == resumed.metrics


def test_a_run_that_fails_raises_its_error(small: list[str], tmp_path: Path) -> None:
    place = f"run_dir={(tmp_path / 'run').as_posix()}"
    with pytest.raises(UserError, match="Expected finite losses") as failure:
        fashion_lit.train([*small, place, "optimizer.lr=1e9"])
    run = RunDirectory(tmp_path / "run")
    assert run.status["state"] == "failed"
    assert run.status["reason"] == str(failure.value)
    assert failure.value.__notes__ == [f"The run in {run.path} failed."]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("optimizer.lr=0.1", "to be a list of texts"),
        ([1], "to be a list of texts"),
        (["optimizer.weight_dcay=1"], "did you mean `optimizer.weight_decay`"),
        (["optimizer.lr=${nothing}"], "Expected a value of `optimizer.lr` that can be resolved"),
        (["optimizer.lr=0.1,0.2"], "call sweep"),
        (["sweep=seeds"], "call fashion_lit.sweep"),
        (["-m"], "Expected an override of the form key=value"),
        (["trainer.accelerator=cpu", "trainer.devices=2"], "type fashion-lit train .*devices=2"),
        (["trainer.accelerator=cpu", "trainer.strategy=ddp"], "its own process alone"),
    ],
)
def test_wrong_settings_are_user_errors_and_leave_nothing(
    overrides: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state()
    with pytest.raises(UserError, match=expected):
        fashion_lit.train(overrides)
    assert state() == before
    assert not list(tmp_path.iterdir())


def test_own_configurations_are_found(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\noptimizer:\n  lr: 0.0125\n"
    (tmp_path / "mine" / "experiment" / "slow.yaml").write_text(text)
    place = f"run_dir={(tmp_path / 'run').as_posix()}"
    overrides = [*small, "experiment=slow", place]
    run = fashion_lit.train(overrides, config_dirs=[tmp_path / "mine"])
    assert run.config["optimizer"]["lr"] == 0.0125
    with pytest.raises(UserError, match="`config_dirs` to be a list"):
        fashion_lit.train(overrides, config_dirs=str(tmp_path / "mine"))


def test_sweep_returns_its_finished_runs_and_raises_if_a_job_fails(
    finished_run: RunDirectory, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*small, "optimizer.lr=0.1,0.2", "sweep_name=lr"]
    overrides += [f"output_root={tmp_path.as_posix()}"]
    folder = tmp_path / "sweeps" / "lr"
    prepared = prepare(overrides, [], multirun=True)
    first, second = plan_jobs([*prepared, "++test=false"], folder)
    shutil.copytree(finished_run.path, first.run.path)  # jobs that are finished do not start
    with monkeypatch.context() as patched:
        fails = [sys.executable, "-c", "print('no luck'); raise SystemExit(1)"]
        patched.setattr(Job, "command", fails)
        expected = rf"all 2 jobs to finish, but 1 did not, first {second.run.path.name}: no luck \("
        with pytest.raises(UserError, match=expected):
            fashion_lit.sweep(overrides)
    shutil.copytree(finished_run.path, second.run.path)
    runs = fashion_lit.sweep(overrides)
    assert [run.directory for run in runs] == [first.run.path, second.run.path]
    assert all(run.metrics == finished_run.metrics for run in runs)


def test_leaderboard_is_the_commands(
    finished_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, lr in (("a", 0.1), ("b", 0.2)):
        run = RunDirectory(Path(shutil.copytree(finished_run.path, tmp_path / name)))
        config = run.config
        run.write_config(config | {"optimizer": config["optimizer"] | {"lr": lr}})
    (tmp_path / "b" / "metrics.json").unlink()
    RunDirectory(tmp_path / "b").write_status("failed", reason="no luck")
    board = fashion_lit.leaderboard(str(tmp_path), metric="val/loss")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}, "it writes nothing"
    assert leaderboard_command([str(tmp_path), "--metric", "val/loss"]) == 0
    rows = json.loads((tmp_path / "leaderboard.json").read_text())
    assert board.columns.tolist() == list(rows[0])
    found = board.astype(object).where(board.notna(), None).to_dict("records")
    assert found == rows
    with pytest.raises(UserError, match="validation metric"):
        fashion_lit.leaderboard(tmp_path, metric="test/accuracy")
    with pytest.raises(UserError, match="less or more is always better"):
        fashion_lit.leaderboard(tmp_path, metric="best_epoch")


def test_curves_are_the_events(finished_run: RunDirectory) -> None:
    (file,) = event_files(finished_run.path)
    events = EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    curves = fashion_lit.load_run(finished_run.path).curves
    tags = events.Tags()["scalars"]
    assert set(curves) == {tag.replace(TEST_GROUP, "test") for tag in tags}
    assert curves.index.name == "step"
    for tag in tags:
        column = curves[tag.replace(TEST_GROUP, "test")].dropna()
        assert [(e.step, e.value) for e in events.Scalars(tag)] == list(column.items()), tag


def test_predictions_of_a_split_and_of_its_images_are_equal(finished_run: RunDirectory) -> None:
    run = fashion_lit.load_run(str(finished_run.path))
    assert run.config == finished_run.config
    assert not run.classifier.training
    of_split = fashion_lit.predict(run)
    assert float(of_split.correct.float().mean()) == pytest.approx(run.metrics["val/accuracy"])
    images = run.datamodule.images_of("val").images
    for given in (images, images.numpy()):
        probabilities = fashion_lit.predict(run, given)
        assert probabilities.dtype == torch.float32
        assert torch.equal(probabilities, of_split.probabilities)
    assert fashion_lit.predict(run, images[:0]).shape == (0, 10)
    for wrong in (images.float(), images[0], images[:, None], images[..., :14]):
        with pytest.raises(UserError, match=r"Expected images \(N, 28, 28\) uint8"):
            fashion_lit.predict(run, wrong)
    with pytest.raises(UserError, match="val or test, but got 'train'"):
        fashion_lit.predict(run, "train")  # type: ignore[call-overload]


def test_a_run_stays_the_same_wherever_its_caller_goes(
    finished_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run.path.parent)
    run = fashion_lit.load_run(finished_run.path.name)
    monkeypatch.chdir(tmp_path)
    expected = fashion_lit.predict(run).probabilities
    assert run.metrics == finished_run.metrics
    run.classifier.train()
    assert torch.equal(fashion_lit.predict(run).probabilities, expected)
    torch.set_default_device("meta")
    try:
        again = fashion_lit.predict(fashion_lit.load_run(finished_run.path))
    finally:
        torch.set_default_device(None)
    assert torch.equal(again.probabilities, expected)


def test_damaged_runs_are_told(run_copy: RunDirectory, finished_run: RunDirectory) -> None:
    folder = run_copy.path.parent
    run_copy.metrics_file.write_text("{}")
    with pytest.raises(UserError, match="of 1 none can be read; the first, run: "):
        fashion_lit.leaderboard(folder)
    shutil.copytree(finished_run.path, folder / "whole")
    with pytest.warns(UserWarning, match="Not ranked: - run: "):
        assert fashion_lit.leaderboard(folder)["jobs"].tolist() == [["whole"]]


def test_loading_and_predicting_draw_no_random_numbers(finished_run: RunDirectory) -> None:
    before = state()
    fashion_lit.predict(fashion_lit.load_run(finished_run.path, "last"))
    assert state() == before


def test_load_run_names_what_is_missing(finished_run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        fashion_lit.load_run(tmp_path / "nowhere")
    last = fashion_lit.load_run(finished_run.last_checkpoint)
    assert last.checkpoint == finished_run.last_checkpoint
    with pytest.raises(UserError, match="Expected one checkpoint"):
        fashion_lit.load_run(finished_run.last_checkpoint, "best")
    with pytest.raises(UserError, match="there is no file"):
        fashion_lit.load_run(finished_run.path, tmp_path / "no.ckpt").load()


def test_wrong_arguments_are_one_sentence(finished_run: RunDirectory) -> None:
    run = fashion_lit.load_run(finished_run.path)
    images = run.datamodule.images_of("val").images
    flipped = fashion_lit.predict(run, images.numpy()[::-1])
    assert torch.equal(flipped, fashion_lit.predict(run, images.flip(0)))
    calls: list[tuple[Any, ...]] = [
        (fashion_lit.predict, str(finished_run.path)),
        (fashion_lit.predict, run, None),
        (fashion_lit.predict, run, object()),
        (fashion_lit.predict, run, [["a"]]),
        (fashion_lit.load_run, None),
        (fashion_lit.leaderboard, None),
    ]
    for function, *arguments in calls:
        with pytest.raises(UserError):
            function(*arguments)
    with pytest.raises(UserError, match="`metric`"):
        fashion_lit.leaderboard(finished_run.path.parent, metric=3)  # type: ignore[arg-type]
