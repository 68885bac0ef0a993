"""Checkpoints from which a run resumes bit-identically, wherever it was stopped.

After a stop in mid-epoch, Lightning alone repeats some samples and omits others, skips a pending
validation or a plateau scheduler's step, and loses the epoch's running metrics. Here every
checkpoint is at one of three positions: before an epoch, before a batch, or before a validation.
`restart_loops` sets Lightning's loops to it, and the data module's `position` sets the batches.
"""

import io
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from fashion_lit.errors import UserError
from fashion_lit.files import with_digest, write_atomically
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.text import shorten


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically.

    Lightning writes to TMPDIR and moves the file: across file systems, a kill or a full disk then
    destroys the existing checkpoint, and a permission error is swallowed.

    Args:
        previous: {file name: the name under which its previous version is kept}.
        needs_check: raise UserError for a state that is not plain, which only a user's own callback
            or other part can have: such a checkpoint could not be loaded.
    """

    def __init__(self, previous: Mapping[str, str], *, needs_check: bool = False) -> None:
        super().__init__()
        self.previous = dict(previous)
        self.needs_check = needs_check

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        if self.needs_check:
            check_plain(checkpoint)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        previous = self.previous.get(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                path,
                with_digest(buffer.getbuffer()),
                keep_previous_as=path.with_name(previous) if previous else None,
            )
        except OSError as error:
            raise UserError(
                f"Expected to write {path} ({buffer.tell() / 1e6:,.1f} MB), but: "
                f"{error.strerror}. The checkpoint before it is intact; free disk space or fix "
                "the permissions, then resume the run."
            ) from None


def check_plain(checkpoint: Mapping[str, Any]) -> None:
    """Raise UserError unless a checkpoint holds tensors and plain values alone, as it has to.

    The message names the callback or other part that has another state.
    """
    parts = {f"the callback {name}": state for name, state in checkpoint["callbacks"].items()}
    parts |= {
        "the optimizer": checkpoint["optimizer_states"],
        "the schedule": checkpoint["lr_schedulers"],
        "the network": checkpoint["state_dict"],
        "a callback's on_save_checkpoint": checkpoint,
    }
    for name, state in parts.items():
        buffer = io.BytesIO()
        try:
            torch.save(state, buffer)
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle and torch raise half a dozen kinds
            reason = " ".join(str(error).split())
            found = re.search(r"GLOBAL (\S+)", reason)
            raise UserError(
                f"Expected tensors and plain values in the state of {name}, so that a run with it "
                f"can resume, but got {found[1] if found else shorten(reason, 200)}."
            ) from None


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch by val/accuracy, even after the run's directory was moved."""

    on_train_batch_end = Callback.on_train_batch_end  # it saves only after validations

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        name = PureWindowsPath(state_dict["best_model_path"]).name  # splits at / and \
        best = Path(self.dirpath, name)
        if not name or not best.is_file():  # a new run has no best epoch yet
            return
        score = state_dict["best_model_score"]
        moved = {
            "dirpath": self.dirpath,
            "best_model_path": str(best),
            "best_k_models": {str(best): score},
            "kth_best_model_path": str(best),
        }
        super().load_state_dict(state_dict | moved)
        self.current_score = state_dict["current_score"]


def is_best_so_far(trainer: Trainer) -> bool:
    """Return whether the latest validation is the best; call it before its checkpoint is saved."""
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    best = checkpoint.best_model_score
    return best is None or bool(trainer.callback_metrics["val/accuracy"] > best)


def restart_loops(
    loops: Mapping[str, Any], epochs_done: int, batches_done: int, *, validation_due: bool
) -> dict[str, Any]:
    """Return Lightning's loop state, rewritten to resume at an exact position.

    Args:
        loops: "loops" of a Lightning checkpoint.
        epochs_done: complete epochs, including their validations and scheduler steps.
        batches_done: batches done in the next epoch; 0 if that epoch has not begun.
        validation_due: whether a validation follows these batches and is not complete.
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
    # With one batch started and none processed, Lightning reruns the validation from its beginning.
    validation = counters(int(validation_due), 0)
    fit["epoch_loop.val_loop.batch_progress"] = fit["epoch_loop.val_loop.batch_progress"] | {
        "total": validation,
        "current": dict(validation),
    }
    return {**loops, "fit_loop": fit}


def check_finite(trainer: Trainer) -> None:
    """Raise NotFiniteError if this epoch's loss or a parameter is NaN or infinite.

    Waits once for the device.
    """
    classifier = trainer.lightning_module
    assert isinstance(classifier, ImageClassifier)
    sums = [classifier.train_metrics.loss_sum, *(p.detach().sum() for p in classifier.parameters())]
    if not torch.stack([torch.as_tensor(s).float() for s in sums]).isfinite().all():
        raise NotFiniteError(trainer)


class NotFiniteError(UserError):
    """The loss or the weights are NaN or infinite."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(
            f"Expected finite losses and weights, but got NaN or infinity by step "
            f"{trainer.global_step} (epoch {trainer.current_epoch + 1}), which was not saved. "
            "Lower optimizer.lr, set trainer.gradient_clip_val=1, or use precision=fp32."
        )


def gather_running_metrics(trainer: Trainer) -> dict[str, Tensor]:
    """Return the epoch's running training metrics of all ranks, each of shape (num_ranks, …)."""
    classifier = _classifier(trainer)
    return {
        name: classifier.all_gather(value).reshape(trainer.world_size, *value.shape).cpu()  # type: ignore[union-attr]
        for name, value in classifier.train_metrics.totals().items()
    }


def restore_running_metrics(trainer: Trainer, totals: Mapping[str, Tensor]) -> None:
    """Restore the epoch's running training metrics from a checkpoint."""
    if len(totals["loss_sum"]) == trainer.world_size:
        own = {name: values[trainer.global_rank] for name, values in totals.items()}
    else:  # the number of ranks has changed: the first rank takes the sum
        share = 1 if trainer.is_global_zero else 0
        own = {name: values.sum(0) * share for name, values in totals.items()}
    _classifier(trainer).train_metrics.restore(own)


def _classifier(trainer: Trainer) -> ImageClassifier:
    classifier = trainer.lightning_module
    assert isinstance(classifier, ImageClassifier)
    return classifier


def environment(trainer: L.Trainer) -> dict[str, str]:
    """Return what a bit-identical result depends on in addition to configuration and seed."""
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    threads = {"threads": str(torch.get_num_threads())} if device.type == "cpu" else {}
    return threads | {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "machine": platform.machine(),
        "processes": str(trainer.world_size),
        "precision": str(trainer.precision),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
    }


@cache
def processor() -> str:
    """Return the CPU's name, such as "AMD EPYC"; "" if the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux, where Python does not know the name
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, flags=re.M)
    return found[1].strip() if found else platform.processor()
