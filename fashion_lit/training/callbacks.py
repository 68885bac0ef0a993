"""Callbacks, logger and profiler of every run: keyed dropout, speed, and no idle work."""

import time
from contextlib import nullcontext
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from fashion_lit.data.randomness import seed_default_generators

DROPOUT_STREAM = 2  # beside the data module's streams 0 and 1
NOTHING = nullcontext()
STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default one, and enters nothing for it.

    Lightning has some 60 profiled sections a step, one for every callback and hook.
    """

    @override
    def profile(self, action_name: str) -> "nullcontext[None]":  # type: ignore[override]
        return NOTHING


class SkipEmptyHooks(L.Callback):
    """Lets Lightning pass over the hooks of a step that do nothing.

    It calls six hooks of every callback and of the classifier at every step, if they are callable,
    and surrounds each call with what loggers and profilers may want to know. Whether classifier or
    data module moves batches to the device it asks three times a step; once will do. Whether the
    first rank got a SIGTERM it asks at every step too, and waits for the device; `RestartPoints`
    asks all ranks, and waits for none.
    """

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for hooked in (*trainer.callbacks, pl_module):  # type: ignore[attr-defined]
            for hook in STEP_HOOKS:
                if not is_overridden(hook, hooked):
                    setattr(hooked, hook, None)
        selector = trainer._data_connector._datahook_selector
        assert selector is not None
        selector.get_instance = cache(selector.get_instance)  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = do_nothing  # type: ignore[method-assign]


def do_nothing() -> None:
    """Do nothing."""


class KeyedDropout(L.Callback):
    """Seeds every training step by (seed, epoch, step, rank), so dropout needs no stored state."""

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

    What happens between an epoch's first and last training batch counts, but no validation, nor
    what other callbacks make of one.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self.seconds = 0.0
        self._since: float | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_epoch()  # a run that goes on in mid-epoch starts no epoch

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
        if pl_module.device.type == "cuda":  # the device may be steps behind
            torch.cuda.synchronize(pl_module.device)
        self.seconds += time.perf_counter() - self._since
        self._since = None
