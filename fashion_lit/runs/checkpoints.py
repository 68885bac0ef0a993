"""Checkpoints from which a run goes on to the bit, wherever it was stopped.

Lightning alone repeats some samples after a stop in mid-epoch, never sees others, skips a pending
validation or a plateau schedule's step, and forgets the epoch's running metrics. Here every
checkpoint is one of three plain places: before an epoch, before a batch, before a validation.
`restart_loops` says so to Lightning's loops; `DataModule.position` says so to the batches.
"""

import io
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from typing_extensions import override

from fashion_lit.errors import UserError
from fashion_lit.files import write_atomically

# The key of a checkpoint under which `ResumeCheckpoints` records what Lightning does not.
RECORD = "run"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning stages in TMPDIR and moves: across file systems a kill or a full disk then destroys
    the checkpoint that was there, and a missing permission is swallowed.

    Args:
        previous: {file name: the name under which its predecessor is kept}.
    """

    def __init__(self, previous: Mapping[str, str]) -> None:
        super().__init__()
        self.previous = dict(previous)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        previous = self.previous.get(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                path,
                buffer.getvalue(),
                keep_previous_as=path.with_name(previous) if previous else None,
            )
        except OSError as error:
            raise UserError(
                f"Expected to write {path} ({buffer.tell() / 1e6:,.1f} MB), but: "
                f"{error.strerror}. The checkpoint before it is intact; make room, or give the "
                "permission, and continue the run."
            ) from None


class BestCheckpoint(ModelCheckpoint):
    """The best epoch by val/accuracy, also after the run's directory was moved."""

    on_train_batch_end = Callback.on_train_batch_end  # it saves after validations alone

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        name = PureWindowsPath(state_dict["best_model_path"]).name  # knows both kinds of slashes
        best = Path(self.dirpath, name)
        if not name or not best.is_file():  # a new run, whose own best is still to come
            return
        score = state_dict["best_model_score"]
        here = {
            "dirpath": self.dirpath,
            "best_model_path": str(best),
            "best_k_models": {str(best): score},
            "kth_best_model_path": str(best),
        }
        super().load_state_dict(state_dict | here)
        self.current_score = state_dict["current_score"]


def is_best_so_far(trainer: Trainer) -> bool:
    """Whether the validation just done is the best; its checkpoint is written after this answer."""
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    best = checkpoint.best_model_score
    return best is None or bool(trainer.callback_metrics["val/accuracy"] > best)


def restart_loops(
    loops: Mapping[str, Any], epochs_done: int, batches_done: int, *, validation_due: bool
) -> dict[str, Any]:
    """Return Lightning's loop state, rewritten to say where exactly training has to go on.

    Args:
        loops: "loops" of a Lightning checkpoint.
        epochs_done: whole epochs, validated and scheduled.
        batches_done: of the next epoch; 0: the epoch has not begun.
        validation_due: a validation follows these batches, and is not over.
    """

    def counters(begun: int, done: int) -> dict[str, int]:
        return {"ready": begun, "started": begun, "processed": done, "completed": done}

    fit = dict(loops["fit_loop"])
    epochs = counters(epochs_done + (batches_done > 0), epochs_done)
    fit["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    batches = fit["epoch_loop.batch_progress"]
    total = batches["total"]["processed"]
    fit["epoch_loop.batch_progress"] = {
        "total": counters(total, total),
        "current": counters(batches_done, batches_done),
        "is_last_batch": validation_due and batches["is_last_batch"],
    }
    # A validation of which one batch has begun and none is done is run again, from its beginning.
    validation = counters(int(validation_due), 0)
    fit["epoch_loop.val_loop.batch_progress"] = fit["epoch_loop.val_loop.batch_progress"] | {
        "total": validation,
        "current": dict(validation),
    }
    return {**loops, "fit_loop": fit}
