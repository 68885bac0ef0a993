"""Batches from images in memory: their order, augmentation, and conversion to network input."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fashion_lit.data.classes import epoch_order
from fashion_lit.data.randomness import EpochCounter, generator
from fashion_lit.data.sources.fashion_mnist import PIXEL_MEAN, PIXEL_STD
from fashion_lit.data.sources.source import LabelledImages
from fashion_lit.data.types import Batch

ORDER_STREAM, AUGMENT_STREAM = 0, 1  # separate the random streams of one epoch


def to_input(
    images: Tensor,
    *,
    image_size: int | None,
    normalize: bool,
    mean: Sequence[float] = (PIXEL_MEAN,),
    std: Sequence[float] = (PIXEL_STD,),
) -> Tensor:
    """Convert images to network input (B, C, image_size, image_size) float32.

    Args:
        images: (B, H, W) uint8 of one channel, or (B, 3, H, W) uint8 of three.
        image_size: height and width of the input in pixels; None: those of the images.
        normalize: give pixels mean 0 and standard deviation 1 over the training set; without it,
            they are in [0, 1].
        mean: of each channel of the training set, on a scale of [0, 1]; by default Fashion-MNIST's.
        std: the standard deviations.
    """
    x = (images[:, None] if images.ndim == 3 else images).float() / 255  # (B, C, H, W)
    if normalize:
        x = (x - _by_channel(tuple(mean), x.device)) / _by_channel(tuple(std), x.device)
    if image_size is None or image_size == x.shape[-1]:
        return x
    if image_size < x.shape[-1]:
        return F.interpolate(x, size=image_size, mode="bilinear", antialias=True)
    # Same result as F.interpolate, which on CUDA switches to a slower decomposition when
    # deterministic algorithms are required.
    return torch.ops.aten.upsample_bilinear2d(x, [image_size, image_size], False)


@cache  # a copy to a GPU would wait in every step
def _by_channel(values: tuple[float, ...], device: torch.device) -> float | Tensor:
    """Return one value as a number, several as a tensor (C, 1, 1) float32."""
    return values[0] if len(values) == 1 else torch.tensor(values, device=device)[:, None, None]


class TrainBatches:
    """Iterate over the augmented training batches of an epoch.

    Order and augmentation depend on (seed, epoch) only. An interrupted epoch resumes at the data
    module's `position`; `len` is that of the whole epoch, as Lightning expects.

    Under DDP each rank draws a disjoint share of equal size, so an epoch omits at most
    num_ranks - 1 images, and a last batch of one image, which batch normalisation rejects.
    `datamodule` is a FashionMNISTDataModule after its `setup`.
    """

    def __init__(
        self,
        datamodule: Any,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        same_every_epoch: bool = False,
    ) -> None:
        self.datamodule = datamodule
        self.rank = rank
        self.num_ranks = num_ranks
        self.same_every_epoch = same_every_epoch
        self.sampler = EpochCounter()
        batch_size = datamodule.batch_size
        num_images = len(datamodule.train_indices) // num_ranks
        single_last = batch_size > 1 and num_images % batch_size == 1
        self.num_images = num_images - 1 if single_last else num_images

    def __len__(self) -> int:
        return -(-self.num_images // self.datamodule.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # A generator reads the epoch at the first batch: Lightning calls iter() before set_epoch().
        epoch, (current_epoch, batches_done) = self.sampler.epoch, self.datamodule.position
        first = batches_done if current_epoch == epoch else 0
        yield from self.draw(0 if self.same_every_epoch else epoch, first)

    def draw(self, epoch: int, first: int = 0, *, mixed_as: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch from index `first`, mixed if epoch `mixed_as` is."""
        data = self.datamodule
        chances = generator(data.seed, ORDER_STREAM, epoch)
        order = epoch_order(data.train_labels, data.class_sampling, chances)
        share = data.train_indices[order[self.rank :: self.num_ranks][: self.num_images]]
        share = share.to(data.tensor_device)  # once per epoch, so that no step waits for a copy
        for step, indices in enumerate(share.split(data.batch_size)[first:], start=first):
            keys = (data.seed, AUGMENT_STREAM, epoch, step, self.rank)
            images, labels = data.train.images[indices], data.train.labels[indices]
            if data.augment:
                draws = generator(*keys, device=images.device)
                images = data.augment(images, draws, labels)
                as_in = epoch if mixed_as is None else mixed_as
                images, labels = data.augment.mix(images, labels, draws, as_in)
            batch = data.to_input(images), labels
            yield (*batch, images) if data.with_pixels else batch


class EvalBatches:
    """Iterate over every image of a split once, in order, divided among the ranks.

    All ranks get the same number of batches (their sizes differ by at most one image): DDP
    broadcasts buffers in each forward pass and would hang if one rank had an extra batch.
    `datamodule` is a FashionMNISTDataModule after its `setup`.
    """

    def __init__(
        self,
        datamodule: Any,
        data: LabelledImages,
        rank: int,
        num_ranks: int,
    ) -> None:
        self.datamodule = datamodule
        self.data = LabelledImages(*(part[rank::num_ranks] for part in data))
        largest_share = -(-len(data.labels) // num_ranks)
        self.num_batches = -(-largest_share // datamodule.eval_batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        parts = (part.tensor_split(self.num_batches) for part in self.data)
        for images, labels in zip(*parts, strict=True):
            yield self.datamodule.to_input(images), labels
