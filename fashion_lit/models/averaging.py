"""An exponential moving average of the weights, and its batch statistics.

The averaged network is `classifier.average`, which `.eval()` selects; `WeightAveraging` updates it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from fashion_lit.data.datamodule import FashionMNISTDataModule, TrainBatches

NUM_STATISTICS_IMAGES = 2048  # at least; twice as many gave the default run no more
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
AVERAGE_EVERY_STEPS = 5  # as often as airbench does; each update reads and writes all weights


def ema_decay_at(num_steps_done: int, decay: float) -> float:
    """Return the average's decay over AVERAGE_EVERY_STEPS steps: less at first, where all is new.

    The ramp is Polyak averaging's: the k-th update decays by at most (1 + k) / (10 + k).
    """
    num_updates = num_steps_done // AVERAGE_EVERY_STEPS
    return min(decay**AVERAGE_EVERY_STEPS, (1 + num_updates) / (10 + num_updates))


def weights_and_statistics(module: nn.Module) -> list[Tensor]:
    """Return all floating-point parameters and buffers, without their gradients."""
    tensors = (*module.parameters(), *module.buffers())
    return [t.detach() for t in tensors if t.is_floating_point()]


class WeightAveraging(L.Callback):
    """Updates a classifier's averaged network during training.

    Every AVERAGE_EVERY_STEPS steps the averaged weights follow those of the trained network. Before
    each validation, the batch statistics of the averaged network are computed anew from training
    images: an average of the statistics of many networks is not that of their average, Izmailov et
    al. 2018, https://arxiv.org/abs/1803.05407

    Args:
        decay: share of itself that the average keeps in a step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averaged: list[Tensor] = []
        self._followed: list[Tensor] = []
        self._updated_at = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        classifier: Any = pl_module
        self._averaged = weights_and_statistics(classifier.average)
        self._followed = weights_and_statistics(classifier.network)
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
            return  # with gradient accumulation, several batches are one step
        self._updated_at = num_steps
        update = get_ema_multi_avg_fn(ema_decay_at(num_steps, self.decay))
        update(self._averaged, self._followed, None)  # pyright: ignore[reportArgumentType]

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        classifier: Any = pl_module
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        norms = trained_norms(classifier.average, classifier.network)
        batches = statistics_batches(datamodule, pl_module.device)
        precision = trainer.precision_plugin
        with precision.forward_context():
            renew_statistics(classifier.average, norms, map(precision.convert_input, batches))


def statistics_batches(
    datamodule: FashionMNISTDataModule, device: torch.device
) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) of augmented training images, the same at each call and rank."""
    batches = TrainBatches(datamodule).draw(epoch=0)
    num_batches = -(-NUM_STATISTICS_IMAGES // datamodule.batch_size)
    for images, _ in islice(batches, num_batches):
        yield images.to(device)


def trained_norms(average: nn.Module, network: nn.Module) -> list[BatchNorm]:
    """Return the batch normalisations of `average` whose twins in `network` are trained."""
    pairs = zip(average.modules(), network.modules(), strict=True)
    return [
        norm
        for norm, twin in pairs
        if isinstance(norm, BatchNorm) and any(p.requires_grad for p in twin.parameters())
    ]


@torch.no_grad()
def renew_statistics(
    network: nn.Module, norms: Sequence[BatchNorm], batches: Iterable[Tensor]
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
