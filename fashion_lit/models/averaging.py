"""Averages of the weights over training, exponential (EMA) or over epochs (SWA).

The averaged network is `classifier.average`, which `.eval()` selects; `WeightAveraging` updates it
and recomputes its batch statistics.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn
from typing_extensions import override

from fashion_lit.data.batches import TrainBatches
from fashion_lit.data.datamodule import FashionMNISTDataModule

NUM_STATISTICS_IMAGES = 2048  # minimum; twice as many do not improve the default run
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
AVERAGE_EVERY_STEPS = 5  # as in airbench; each update reads and writes all weights


def ema_decay_at(num_steps_done: int, decay: float) -> float:
    """Return the decay of an update after `num_steps_done` steps, smaller early in training.

    An update covers AVERAGE_EVERY_STEPS steps, `decay` is per step. The warm-up is that of Polyak
    averaging: the decay of the k-th update is at most (1 + k) / (10 + k).
    """
    num_updates = num_steps_done // AVERAGE_EVERY_STEPS
    return min(decay**AVERAGE_EVERY_STEPS, (1 + num_updates) / (10 + num_updates))


def weights_and_statistics(module: nn.Module) -> list[Tensor]:
    """Return all floating-point parameters and buffers, detached."""
    tensors = (*module.parameters(), *module.buffers())
    return [t.detach() for t in tensors if t.is_floating_point()]


class WeightAveraging(L.Callback):
    """Update a classifier's averaged network during training; a subclass says how.

    Before each validation, the batch statistics of the averaged network are recomputed from
    training images, because averaging the statistics of many networks does not give those of the
    averaged network: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407
    """

    def __init__(self) -> None:
        self._averaged: list[Tensor] = []
        self._trained: list[Tensor] = []

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        classifier: Any = pl_module
        self._averaged = weights_and_statistics(classifier.average)
        self._trained = weights_and_statistics(classifier.network)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        classifier: Any = pl_module
        if trainer.state.fn != TrainerFn.FITTING or classifier.evaluated is classifier.network:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        norms = trained_norms(classifier.average, classifier.network)
        batches = statistics_batches(datamodule, pl_module.device, trainer.current_epoch)
        precision = trainer.precision_plugin
        with precision.forward_context():
            recompute_statistics(classifier.average, norms, map(precision.convert_input, batches))


class ExponentialAveraging(WeightAveraging):
    """Move the average towards the trained network every AVERAGE_EVERY_STEPS steps.

    Args:
        decay: share of the previous average that is kept per step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._updated_at = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._updated_at = trainer.global_step

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        num_steps = trainer.global_step
        if num_steps % AVERAGE_EVERY_STEPS or num_steps == self._updated_at:
            return  # with gradient accumulation, several batches make one step
        self._updated_at = num_steps
        update = get_ema_multi_avg_fn(ema_decay_at(num_steps, self.decay))
        update(self._averaged, self._trained, None)  # pyright: ignore[reportArgumentType]


def swa_epoch(start: float, num_epochs: float) -> int:
    """Return the first epoch, from 0, of stochastic weight averaging from a share of a run on.

    `num_epochs` is no whole number if the run ends within an epoch.
    """
    return min(round(start * num_epochs), math.ceil(num_epochs) - 1)


class StochasticWeightAveraging(WeightAveraging):
    """Train at a constant rate from an epoch on, and average the weights at the end of each epoch.

    The classifier's `first_swa_epoch` is that epoch, and its `num_averaged` counts; until it is 1,
    the trained network is evaluated. The rate of a parameter group is its "swa_lr". An epoch that
    `max_steps` ends counts, too. Izmailov et al. 2018, https://arxiv.org/abs/1803.05407
    """

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        classifier: Any = pl_module
        if classifier.is_swa_epoch:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = group["swa_lr"]

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        classifier: Any = pl_module
        is_last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if not (is_last and classifier.is_swa_epoch):
            return
        num_averaged = classifier.num_averaged
        update = get_swa_multi_avg_fn()
        update(self._averaged, self._trained, num_averaged)  # pyright: ignore[reportArgumentType]
        num_averaged += 1


def statistics_batches(
    datamodule: FashionMNISTDataModule, device: torch.device, epoch: int = 0
) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) of augmented training images, identical on every call and rank.

    They are those of the first epoch, mixed with each other if those of `epoch` are.
    """
    batches = TrainBatches(datamodule).draw(epoch=0, mixed_as=epoch)
    num_batches = -(-NUM_STATISTICS_IMAGES // datamodule.batch_size)
    for images, *_ in islice(batches, num_batches):
        yield images.to(device)


def trained_norms(average: nn.Module, network: nn.Module) -> list[BatchNorm]:
    """Return the batch normalisations of `average` whose counterparts in `network` are trained."""
    pairs = zip(average.modules(), network.modules(), strict=True)
    return [
        norm
        for norm, counterpart in pairs
        if isinstance(norm, BatchNorm) and any(p.requires_grad for p in counterpart.parameters())
    ]


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, norms: Sequence[BatchNorm], batches: Iterable[Tensor]
) -> None:
    """Replace the running statistics of `norms` by their means over `batches` (B, C, H, W).

    All other modules stay in evaluation mode. `swa_utils.update_bn` would leave dropout active,
    which draws from a generator state that a resumed run does not have.
    """
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None makes torch compute cumulative means
        norm.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
