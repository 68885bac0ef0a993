"""Callbacks of every run: reproducible dropout and training speed."""

import time
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from fashion_lit.data.randomness import seed_default_generators

DROPOUT_STREAM = 2  # the data module uses streams 0 and 1


class KeyedDropout(L.Callback):
    """Seeds every training step with (seed, epoch, step, rank): dropout needs no saved state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        keys = (trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_default_generators(self.seed, DROPOUT_STREAM, *keys)


class TrainingSpeed(L.Callback):
    """Logs train/images_per_second of every epoch, over all ranks.

    Measures the time from an epoch's first to its last training batch, without validations and
    other callbacks' work on them.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.seconds = 0.0
        self._since: float | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_epoch()  # resuming in mid-epoch skips on_train_epoch_start

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.num_images, self.seconds, self._since = 0, 0.0, time.perf_counter()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None:  # after a validation in mid-epoch
            self._since = time.perf_counter()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.num_images += len(batch[1]) * trainer.world_size

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock(pl_module)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock(pl_module)
        images_per_second = self.num_images / max(self.seconds, 1e-9)
        pl_module.log("train/images_per_second", images_per_second, rank_zero_only=True)

    def _stop_clock(self, pl_module: L.LightningModule) -> None:
        if self._since is None:
            return
        if pl_module.device.type == "cuda":  # the GPU runs asynchronously
            torch.cuda.synchronize(pl_module.device)
        self.seconds += time.perf_counter() - self._since
        self._since = None
