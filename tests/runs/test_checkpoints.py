from pathlib import Path
from typing import Any

import pytest
import torch

from fashion_lit.errors import UserError
from fashion_lit.runs.checkpoints import AtomicCheckpointIO, BestCheckpoint, restart_loops


def counters(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "started": started, "processed": processed, "completed": completed}


def loops(is_last_batch: bool = False) -> dict[str, Any]:
    batches = {"total": counters(18, 17, 17, 17), "current": counters(8, 7, 7, 7)}
    return {
        "fit_loop": {
            "epoch_progress": {"total": counters(2, 2, 1, 1), "current": counters(2, 2, 1, 1)},
            "epoch_loop.batch_progress": batches | {"is_last_batch": is_last_batch},
            "epoch_loop.val_loop.batch_progress": batches | {"is_last_batch": True},
            "other": 3,
        },
        "validate_loop": {},
    }


def test_restart_before_a_batch_counts_the_batches_that_are_done() -> None:
    fit = restart_loops(loops(is_last_batch=True), 1, 7, validation_due=False)["fit_loop"]
    assert fit["epoch_progress"]["current"] == counters(2, 2, 1, 1)
    assert fit["epoch_loop.batch_progress"]["current"] == counters(7, 7, 7, 7)
    assert fit["epoch_loop.batch_progress"]["total"] == counters(17, 17, 17, 17)
    assert not fit["epoch_loop.batch_progress"]["is_last_batch"]  # it is yet to be trained
    assert fit["epoch_loop.val_loop.batch_progress"]["total"] == counters(0, 0, 0, 0)
    assert fit["other"] == 3


def test_restart_before_a_validation_marks_one_as_started() -> None:
    fit = restart_loops(loops(is_last_batch=True), 1, 8, validation_due=True)["fit_loop"]
    assert fit["epoch_loop.batch_progress"]["is_last_batch"]
    assert fit["epoch_loop.val_loop.batch_progress"]["current"] == counters(1, 1, 0, 0)


def test_restart_between_epochs_has_no_started_epoch() -> None:
    fit = restart_loops(loops(), 2, 0, validation_due=False)["fit_loop"]
    assert fit["epoch_progress"]["current"] == counters(2, 2, 2, 2)
    assert fit["epoch_progress"]["total"] == counters(2, 2, 2, 2)
    assert fit["epoch_loop.batch_progress"]["current"] == counters(0, 0, 0, 0)


def test_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    storage = AtomicCheckpointIO({"last.ckpt": "previous.ckpt"})
    for epoch in range(3):
        storage.save_checkpoint({"epoch": epoch}, tmp_path / "checkpoints" / "last.ckpt")
    names = {path.name: torch.load(path) for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt": {"epoch": 2}, "previous.ckpt": {"epoch": 1}}


def test_checkpoint_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()  # a file instead of a directory
    with pytest.raises(UserError, match=r"Expected to write .*last\.ckpt .* before it is intact"):
        AtomicCheckpointIO({}).save_checkpoint({}, tmp_path / "checkpoints" / "last.ckpt")


def best_checkpoint(directory: Path) -> BestCheckpoint:
    return BestCheckpoint(directory, filename="best", monitor="val/accuracy", mode="max")


@pytest.mark.parametrize("recorded", ["/elsewhere/checkpoints/best.ckpt", "C:\\runs\\best.ckpt"])
def test_best_score_is_remembered_after_the_directory_was_moved(
    recorded: str, tmp_path: Path
) -> None:
    before = best_checkpoint(tmp_path / "elsewhere")
    before.best_model_path, before.best_model_score = recorded, torch.tensor(0.9)
    (tmp_path / "best.ckpt").touch()
    after = best_checkpoint(tmp_path)
    after.load_state_dict(before.state_dict())
    assert after.best_model_path == str(tmp_path / "best.ckpt")
    assert after.best_k_models == {str(tmp_path / "best.ckpt"): torch.tensor(0.9)}
    assert after.best_model_score == torch.tensor(0.9)


def test_new_run_has_no_best_epoch_yet(tmp_path: Path) -> None:
    before = best_checkpoint(tmp_path / "elsewhere")
    before.best_model_path, before.best_model_score = "/elsewhere/best.ckpt", torch.tensor(0.9)
    after = best_checkpoint(tmp_path)
    after.load_state_dict(before.state_dict())
    assert after.best_model_path == ""
    assert after.best_model_score is None
