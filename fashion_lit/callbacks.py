"""Callbacks, logger and profiler of every run: keyed dropout, speed, and no idle work."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fashion_lit.classifier import ImageClassifier
from fashion_lit.datamodule import FashionMNISTDataModule, TrainBatches
from fashion_lit.randomness import seed_default_generators

NUM_STATISTICS_IMAGES = 2048  # at least; twice as many gave the default run no more
DROPOUT_STREAM = 2  # beside the data module's streams 0 and 1
EVENT_FILES = "events.out.tfevents.*"
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


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard events into the run directory itself, and nothing beside them.

    Args:
        run_dir: the run directory; events of the run's earlier processes may be there.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)
        self.run_dir = run_dir
        self.goes_on = any(run_dir.glob(EVENT_FILES))

    def flush(self) -> dict[str, int]:
        """Write out all events; returns the event files' names and sizes in bytes."""
        self.save()
        return {path.name: path.stat().st_size for path in self.run_dir.glob(EVENT_FILES)}

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, without the `epoch` that Lightning adds to each call."""
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)

    @override
    def save(self) -> None:
        """Flush the events; the configuration stands in config.yaml, not in a hparams.yaml."""
        self.experiment.flush()

    @override
    def finalize(self, status: str) -> None:
        """Flush the events, and go on in the same file: fit, validate and test each end so."""
        self.experiment.flush()


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


class AverageStatistics(L.Callback):
    """Gives averaged weights batch statistics of their own, before each validation of a fit.

    An average of the statistics of many weights is not that of their average: Izmailov et al. 2018,
    https://arxiv.org/abs/1803.05407
    """

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if pl_module.average is None or trainer.state.fn != TrainerFn.FITTING:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        norms = trained_norms(pl_module.average, pl_module.network)
        batches = statistics_batches(datamodule, pl_module.device)
        precision = trainer.precision_plugin
        with precision.forward_context():
            renew_statistics(pl_module.average, norms, map(precision.convert_input, batches))


def statistics_batches(
    datamodule: FashionMNISTDataModule, device: torch.device
) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) of augmented training images, the same at each call and rank."""
    batches = TrainBatches(datamodule, same_every_epoch=True)
    batches.set_epoch(-1)  # training stands in no such epoch, so no batch of it counts as done
    num_batches = -(-NUM_STATISTICS_IMAGES // datamodule.batch_size)
    for images, _ in islice(batches, num_batches):
        yield images.to(device)


def trained_norms(average: nn.Module, network: nn.Module) -> list[_BatchNorm]:
    """Return the batch normalisations of `average` whose twins in `network` are trained."""
    pairs = zip(average.modules(), network.modules(), strict=True)
    return [
        norm
        for norm, twin in pairs
        if isinstance(norm, _BatchNorm) and any(p.requires_grad for p in twin.parameters())
    ]


@torch.no_grad()
def renew_statistics(
    network: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Tensor]
) -> None:
    """Replace the running statistics of `norms` by their means over batches of images.

    All else stays in evaluation mode. With `swa_utils.update_bn` dropout would draw, from a state
    that a resumed run does not have.
    """
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for plain means
        norm.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


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
