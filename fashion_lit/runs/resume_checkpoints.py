"""The callback that saves the checkpoints a run resumes from, and stops the run on a signal."""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from pydantic import PositiveFloat, PositiveInt
from typing_extensions import override

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.errors import Stopped, UserError
from fashion_lit.files import digest_of
from fashion_lit.parts.kinds import named_parts
from fashion_lit.runs.checkpoints import (
    check_finite,
    environment,
    gather_running_metrics,
    processor,
    restart_loops,
    restore_running_metrics,
)
from fashion_lit.runs.data_records import DATA, describe_data
from fashion_lit.runs.integrity import HAS_DIGEST, IS_RESUMABLE, RECORD
from fashion_lit.runs.logger import EventFiles, flush_events
from fashion_lit.runs.signals import StopSignals

AGREE_EVERY_STEPS = 5  # how often the ranks agree on whether to stop or save


class ResumeCheckpoints(L.Callback):
    """Saves last.ckpt after every epoch, at intervals within it, and on a stop signal.

    Args:
        path: the file of the last checkpoint.
        config: the run's configuration, plain values; stored in every checkpoint.
        signals: its `received` asks for a stop.
        every_minutes: save when this much time has passed since the last checkpoint.
        every_steps: also save after this many optimizer steps; None: only by time.
        record: what the checkpoint to resume from stores under RECORD, or {}.
        on_save: called in the first process with "epoch" and "step", the numbers completed, and
            the "seconds" they took.
        has_lost_lock: says whether another process may have locked the run; it then stops.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: Mapping[str, Any],
        signals: StopSignals,
        every_minutes: PositiveFloat,
        every_steps: PositiveInt | None,
        record: Mapping[str, Any],
        on_save: Callable[[Mapping[str, float]], None],
        has_lost_lock: Callable[[], bool],
    ) -> None:
        self.path = path
        self.config = dict(config)
        self.signals = signals
        self.every_seconds = 60 * every_minutes
        self.every_steps = every_steps
        self.record = record
        self.on_save = on_save
        self.has_lost_lock = has_lost_lock
        self.began = time.perf_counter() - record.get("seconds", 0.0)
        self._validation_due = False
        self._within_step = False  # gradients are accumulated that no checkpoint contains
        self._events_before_validation: EventFiles = {}
        self._stopped_early = False
        self._stops_to_validate = False
        self._every_n_epochs: int | None = 1
        self._saving = False
        self._saved_at = time.perf_counter()
        self._saved_step = -1
        self._group: Any = None

    @property
    def seconds(self) -> float:
        """The run's training time in seconds, including earlier processes that it resumed from."""
        return time.perf_counter() - self.began

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.callback_metrics.update(self.record.get("metrics", {}))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        if trainer.global_step == 0 and named_parts(self.config):
            self._saved_step = -1  # saves at once: is the state of a user's part plain?
        self._every_n_epochs = trainer.check_val_every_n_epoch
        self.signals.listen()
        self.signals.defer_stop = True
        if self.record.get("stopped_early", False):
            trainer.should_stop = True

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._set_position(trainer, trainer.current_epoch, 0)
        stop, _ = self._reduce_flags(trainer)
        if trainer.global_step != self._saved_step or stop:
            self._save(trainer, stop=stop)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._set_position(trainer, trainer.current_epoch, batch_idx)
        step, rest = divmod(batch_idx, trainer.accumulate_grad_batches)
        if rest:
            return  # checkpoints do not contain accumulated gradients
        stop, due = False, self._are_steps_due(trainer)
        if trainer.world_size == 1 or step % AGREE_EVERY_STEPS == 0:
            stop, minutes_due = self._reduce_flags(trainer)
            due |= minutes_due
        if stop or (due and trainer.global_step != self._saved_step):
            self._save(trainer, stop=stop)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and trainer.global_step % every == 0:
            check_finite(trainer)  # waits for the device, so not at every step
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # after which Lightning validates before it stops
        elif not trainer.should_stop and self._is_last_validation_due(trainer, batch_idx):
            trainer.should_stop = self._stops_to_validate = True
        if trainer.should_stop and not _best_path(trainer):
            trainer.check_val_every_n_epoch = 1  # or it might stop without any validation

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self._stops_to_validate:
            trainer.should_stop = self._stops_to_validate = False
        trainer.check_val_every_n_epoch = self._every_n_epochs
        check_finite(trainer)  # before these weights become the best checkpoint
        batches_done = trainer.fit_loop.batch_idx + 1
        self._set_position(trainer, trainer.current_epoch, batches_done, validation_due=True)
        is_last = batches_done == trainer.num_training_batches  # Lightning steps at an epoch's end
        self._within_step = bool(batches_done % trainer.accumulate_grad_batches) and not is_last
        # A run that resumes here validates again, and logs the validation again.
        self._events_before_validation = flush_events(trainer)

    @override
    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self._within_step:
            return  # within a step, the run stops after the validation, when the step is done
        if trainer.world_size == 1 or batch_idx % AGREE_EVERY_STEPS == 0:
            stop, _ = self._reduce_flags(trainer)
            if stop:
                self._save(trainer, stop=True)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.defer_stop = False
        self._set_position(trainer, trainer.current_epoch, 0)
        self._stopped_early = trainer.should_stop and trainer.current_epoch != trainer.max_epochs
        stop, _ = self._reduce_flags(trainer)
        self._save(trainer, stop=stop)

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epochs_done, batches_done = _datamodule(trainer).position
        checkpoint["loops"] = restart_loops(
            checkpoint["loops"], epochs_done, batches_done, validation_due=self._validation_due
        )
        checkpoint["train_metrics"] = gather_running_metrics(trainer)
        metrics = {k: v.detach().cpu().clone() for k, v in trainer.callback_metrics.items()}
        due = self._validation_due
        events = self._events_before_validation if due else flush_events(trainer)
        checkpoint[RECORD] = {
            HAS_DIGEST: True,
            "config": self.config,
            DATA: describe_data(_datamodule(trainer)),
            "epochs_done": epochs_done,
            "steps_done": trainer.global_step,
            "environment": environment(trainer),
            "processor": processor(),
            "metrics": metrics,
            "seconds": self.seconds,
            "stopped_early": self._stopped_early,
            "event_files": {name: size for name, (size, _) in events.items()},
            "event_digests": {name: digest for name, (_, digest) in events.items()},
            "best_digest": best_digest(trainer),
            IS_RESUMABLE: self._is_resumable(trainer),
        }

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if "train_metrics" in checkpoint:
            restore_running_metrics(trainer, checkpoint["train_metrics"])

    def _set_position(
        self, trainer: L.Trainer, epoch: int, batches_done: int, *, validation_due: bool = False
    ) -> None:
        _datamodule(trainer).position = (epoch, batches_done)
        self._validation_due = validation_due

    def _is_resumable(self, trainer: L.Trainer) -> bool:
        """Return whether a run that resumes from a checkpoint saved now has the same result.

        A best checkpoint is saved after its validation, which a resumed run repeats: early stopping
        would count it twice. Gradients that are accumulated for a step are in no checkpoint.
        """
        if self._saving or not self._validation_due:
            return True
        stops_early = any(isinstance(c, EarlyStopping) for c in trainer.callbacks)  # type: ignore[attr-defined]
        return not self._within_step and not stops_early

    def _is_last_validation_due(self, trainer: L.Trainer, batch_idx: int) -> bool:
        """Whether this is the last batch that a validation can follow, after any duration."""
        if not isinstance(self.config["trainer"].get("val_check_interval"), str | dict):
            return False
        assert trainer.max_epochs is not None
        every = trainer.check_val_every_n_epoch or 1
        last_epoch = trainer.max_epochs // every * every
        is_last_batch = batch_idx + 1 == trainer.num_training_batches
        return is_last_batch and trainer.current_epoch + 1 == last_epoch

    def _are_steps_due(self, trainer: L.Trainer) -> bool:
        steps = trainer.global_step - self._saved_step  # the same on every rank
        return self.every_steps is not None and steps >= self.every_steps

    def _reduce_flags(self, trainer: L.Trainer) -> tuple[bool, bool]:
        """Return (stop, due), each True if it is True on any rank.

        stop: a stop signal was received; due: `every_minutes` has passed since the last checkpoint.
        """
        stop = self.signals.received is not None or self.has_lost_lock()
        due = time.perf_counter() - self._saved_at >= self.every_seconds
        if trainer.world_size == 1:
            return stop, due
        if self._group is None:  # over the CPU, so that no process waits for its GPU
            self._group = torch.distributed.new_group(backend="gloo")
        flags = torch.tensor([stop, due], dtype=torch.uint8)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, self._group)
        return bool(flags[0]), bool(flags[1])

    def _save(self, trainer: L.Trainer, *, stop: bool) -> None:
        check_finite(trainer)
        self._saving = True
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saving = False
        self._saved_at, self._saved_step = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero:
            steps = trainer.global_step
            self.on_save({"epoch": trainer.current_epoch, "step": steps, "seconds": self.seconds})
        if stop and self.has_lost_lock():
            raise UserError(
                f"Expected this run's lock file to stay, but it was removed from "
                f"{self.path.parents[1]}, so another process might train there, too. The run was "
                "saved and stopped; resume it by run_dir=, once no other process trains it."
            )
        if stop:
            raise Stopped(self.signals.received or signal.SIGINT)  # None: another rank received it


def best_digest(trainer: L.Trainer) -> str | None:
    """Return the digest of the best checkpoint so far; None if there is none."""
    path = Path(_best_path(trainer) or "absent")
    return digest_of(path) if path.is_file() else None


def _best_path(trainer: L.Trainer) -> str:
    """Return the file of the best checkpoint so far; "" if there is none."""
    return getattr(trainer.checkpoint_callback, "best_model_path", "")


def _datamodule(trainer: L.Trainer) -> FashionMNISTDataModule:
    datamodule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(datamodule, FashionMNISTDataModule)
    return datamodule
