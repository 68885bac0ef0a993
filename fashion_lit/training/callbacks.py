"""Callbacks of training steps: dropout, speed, teachers; and of a learning-rate range test."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tqdm import tqdm
from typing_extensions import override

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.randomness import seed_default_generators
from fashion_lit.evaluation.curves import DIVERGED, smoothed_at
from fashion_lit.files import digest_of_file
from fashion_lit.models.distillation import Distillation
from fashion_lit.runs.data_records import describe_data
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import RECORD
from fashion_lit.runs.lost_files import keep_data
from fashion_lit.runs.signals import StopSignals
from fashion_lit.runs.teachers import DIGESTS, load_teacher

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


class DataRecord(L.Callback):
    """Records what data a run trains on, or refuses data other than those recorded.

    Args:
        run: the run.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            datamodule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            assert isinstance(datamodule, FashionMNISTDataModule)
            keep_data(self.run, describe_data(datamodule), write=trainer.is_global_zero)


class Teaching(L.Callback):
    """Lets a classifier learn from its teachers while it trains.

    Args:
        files: the checkpoints of the teachers.
        settings: the arguments of `Distillation`.
    """

    def __init__(self, files: Sequence[Path], settings: Mapping[str, float]) -> None:
        self.files = list(files)
        self.settings = dict(settings)
        self._digests: list[str] = []

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._digests = checkpoint[RECORD].get(DIGESTS, [])

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.should_stop and not all(path.is_file() for path in self.files):
            return  # a finished run, which only tests, has deleted them
        teachers = [load_teacher(path) for path in self.files]
        for teacher in teachers:
            teacher.to(pl_module.device, pl_module.dtype)  # type: ignore[arg-type]
        self._digests = [digest_of_file(path) for path in self.files]
        classifier: Any = pl_module
        classifier.distillation = Distillation(teachers, **self.settings)
        trainer.datamodule.with_pixels = True  # type: ignore[attr-defined]

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        classifier: Any = pl_module
        classifier.distillation = None

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RECORD][DIGESTS] = self._digests


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


class RangeTest(L.Callback):
    """Trains with a learning rate that rises from step to step, and stops if the loss diverges.

    Args:
        rates: learning rate of each optimizer step. The rate of a parameter group is this times the
            rate that the group was built with.
        window: standard deviation of the smoothing window, in steps.
        signals: stop the test at once.
        show_bar: draw a progress bar if standard error is a terminal.

    Attributes:
        losses: mean loss of each step's batches, with the weights before the step; all are finite.
        diverged: whether the loss became infinite, NaN, or DIVERGED times its minimum.
    """

    def __init__(
        self, rates: Sequence[float], window: float, signals: StopSignals, *, show_bar: bool
    ) -> None:
        self.rates = rates
        self.window = window
        self.signals = signals
        self.losses: list[float] = []
        self.diverged = False
        self._lowest = math.inf
        self._factors: list[float] = []
        self._batch_losses: list[float] = []  # of the step in progress
        self._bar = tqdm(
            total=len(rates),
            disable=None if show_bar else True,  # None: only on a terminal
            unit="step",
            leave=False,
            dynamic_ncols=True,
        )

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.listen()  # Lightning has installed its own handlers
        self._factors = [group["lr"] for group in trainer.optimizers[0].param_groups]

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        groups = trainer.optimizers[0].param_groups
        for group, factor in zip(groups, self._factors, strict=True):
            group["lr"] = self.rates[len(self.losses)] * factor

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Lightning divides the loss by the number of batches whose gradients it adds.
        self._batch_losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.losses) and math.isfinite(self._batch_losses[-1]):
            return  # more batches of this step follow
        loss = statistics.fmean(self._batch_losses)
        self._batch_losses = []
        self.diverged = not self._add(loss)
        trainer.should_stop = self.diverged or len(self.losses) == len(self.rates)

    def _add(self, loss: float) -> bool:
        """Add the loss of a step; return whether the training still converges."""
        if not math.isfinite(loss):
            return False
        self.losses.append(loss)
        self._bar.update()
        smoothed = smoothed_at(self.losses, len(self.losses) - 1, self.window)
        self._lowest = min(self._lowest, smoothed)
        return smoothed <= DIVERGED * self._lowest

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._bar.close()
