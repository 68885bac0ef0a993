"""Results that a stop, a setting or a batch size must not change."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_interruptions import stop_at
from test_kills import assert_equal, curves, training_state

from fashion_lit.commands.train import main
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.directory import RunDirectory

Train = Callable[..., RunDirectory]
ACCUMULATED = [
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=5",
    "data.batch_size=20",
    "data.eval_batch_size=20",
    "trainer.max_epochs=2",
    "test=false",
]


@pytest.mark.parametrize(
    ("step", "count"), [("validation_step", 5), ("validation_step", 3), ("training_step", 5)]
)
def test_a_stop_within_an_accumulated_step_is_exact(
    step: str, count: int, train: Train, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(*ACCUMULATED)
    path = whole.path.with_name("stopped")
    with monkeypatch.context() as patch:
        stop_at(patch, step, count)
        assert main([*small, *ACCUMULATED, f"run_dir={path.as_posix()}"]) == 130
    assert main([f"run_dir={path.as_posix()}"]) == 0
    run = RunDirectory(path)
    for name in ("last.ckpt", "best.ckpt"):
        states = [training_state(r.checkpoint_dir / name) for r in (run, whole)]
        assert_equal(*states, path=name)
    assert_equal(curves(run), curves(whole), path="curves")


def test_a_stop_within_a_mixed_epoch_is_exact(
    train: Train, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["augment=strong", "augment.until_epoch=1", "data.class_sampling.Shirt=2"]
    settings += ["augment.rotate=10", "augment.classes=[Shirt,Bag]", "model.class_weights.Coat=2"]
    settings += ["trainer.max_epochs=2", "test=false", "data.batch_size=20"]
    whole = train(*settings)
    path = whole.path.with_name("stopped")
    with monkeypatch.context() as patch:
        stop_at(patch, "training_step", 4)
        assert main([*small, *settings, f"run_dir={path.as_posix()}"]) == 130
    assert main([f"run_dir={path.as_posix()}", "augment.classes=[bag,shirt]"]) == 0
    run = RunDirectory(path)
    for name in ("last.ckpt", "best.ckpt"):
        states = [training_state(r.checkpoint_dir / name) for r in (run, whole)]
        assert_equal(*states, path=name)
    assert_equal(curves(run), curves(whole), path="curves")


@pytest.mark.parametrize(
    "settings",
    [
        ["early_stopping.patience=2", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
        ["scheduler=plateau", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
        ["trainer.max_steps=2", "trainer.max_epochs=3"],
        ["trainer.max_time=00:00:00:01", "trainer.max_epochs=500", "scheduler=constant"],
        ["trainer.val_check_interval=00:01:00:00", "trainer.max_epochs=2"],
        ["trainer.max_steps=2", "trainer.max_epochs=9", "trainer.check_val_every_n_epoch=9"],
        [
            *("trainer.max_time=00:00:00:01", "trainer.max_epochs=500", "scheduler=constant"),
            "trainer.check_val_every_n_epoch=500",
        ],
    ],
    ids=["early stopping", "plateau", "max_steps", "max_time", "duration", "steps", "time"],
)
def test_what_reads_a_validation_waits_for_one(settings: list[str], train: Train) -> None:
    run = train(*settings, "test=false")
    assert run.status["state"] == "finished"
    assert run.best_checkpoint.exists()
    assert 0 <= run.metrics["val/accuracy"] <= 1


def test_a_repeated_validation_is_logged_once(
    train: Train, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["trainer.val_check_interval=0.5", "test=false"]
    whole = train(*settings)
    run = RunDirectory(whole.path.with_name("killed"))
    calls = itertools.count(1)
    original = ImageClassifier.validation_step

    def validation_step(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        if next(calls) == 5:  # in the second validation, before the first last.ckpt
            raise SystemExit
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "validation_step", validation_step)
        main([*small, *settings, f"run_dir={run.path.as_posix()}"])
    assert run.best_checkpoint.exists()
    assert not run.last_checkpoint.exists()
    assert main([f"run_dir={run.path.as_posix()}"]) == 0
    assert_equal(curves(run), curves(whole), path="curves")


def test_a_weighted_loss_does_not_depend_on_the_batch_size(train: Train) -> None:
    weights = "model.class_weights=[1.0,1.0,1.0,1.0,1.0,1.0,5.0,1.0,1.0,9.0]"
    same = ["model.ema_decay=null", "trainer.max_epochs=1", "test=false", weights]
    losses = [train(*same, f"data.eval_batch_size={size}").metrics["val/loss"] for size in (7, 100)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_best_checkpoint_within_a_step_is_no_restart_point(train: Train) -> None:
    run = train(*ACCUMULATED, "trainer.max_epochs=1")
    record = torch.load(run.best_checkpoint)["run"]
    assert record["is_resumable"] == (record["steps_done"] * 2 % 5 == 0)


def test_the_number_of_validation_images_is_recorded(train: Train) -> None:
    run = train("trainer.limit_val_batches=1", "test=false")
    assert run.metrics["val/num_images"] == 34  # of 100, in batches of at most 40
