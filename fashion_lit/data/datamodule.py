"""The data as Lightning sees it: a fixed split, resident in memory, drawn in whole batches.

    datamodule = FashionMNISTDataModule(FashionMNIST(), batch_size=256, seed=0)

The images stay uint8 (47 MB in all), on the training device. A batch is one index operation; then
augmentation, conversion, normalisation and resizing run on the whole batch, on that device.
"""

from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from fashion_lit.data.augment import Augment
from fashion_lit.data.fashion_mnist import NUM_CLASSES, PIXEL_MEAN, PIXEL_STD
from fashion_lit.data.randomness import generator
from fashion_lit.data.types import Batch, ImageSource, LabelledImages
from fashion_lit.errors import UserError

ORDER_STREAM, AUGMENT_STREAM = 0, 1  # keep the draws of one epoch apart


def stratified_split(labels: Tensor, val_size: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels` (N,) into sorted train and validation indices, both int64.

    Every class gives its share of `val_size`, to the nearest image. numpy's RandomState is used
    because its stream is frozen (NEP 19): the split is the same on every machine, forever.
    """
    random = np.random.RandomState(split_seed)
    classes = labels.cpu().numpy()
    counts = np.bincount(classes, minlength=NUM_CLASSES)
    shares = counts * val_size / len(classes)
    val_counts = np.floor(shares).astype(int)
    largest_remainders = np.argsort(val_counts - shares, kind="stable")
    val_counts[largest_remainders[: val_size - val_counts.sum()]] += 1
    in_val = np.zeros(len(classes), dtype=bool)
    for class_index, val_count in enumerate(val_counts):
        members = np.flatnonzero(classes == class_index)
        in_val[members[random.permutation(len(members))[:val_count]]] = True
    return torch.from_numpy(np.flatnonzero(~in_val)), torch.from_numpy(np.flatnonzero(in_val))


def check_val_size(val_size: int, num_train: int) -> None:
    """Raise UserError unless `val_size` leaves some of the `num_train` images to train on."""
    if val_size >= num_train:
        raise UserError(
            f"Expected `data.val_size` to be smaller than the {num_train:,} training images that "
            f"it is taken from, but got {val_size:,}."
        )


def to_input(images: Tensor, *, image_size: int, normalize: bool) -> Tensor:
    """Turn images (B, H, W) uint8 into network input (B, 1, image_size, image_size) float32.

    Pixels come out in [0, 1], or with mean 0 and standard deviation 1 over the training set.
    """
    x = images[:, None].float() / 255  # (B, 1, H, W)
    if normalize:
        x = (x - PIXEL_MEAN) / PIXEL_STD
    if image_size < x.shape[-1]:
        x = F.interpolate(x, size=image_size, mode="bilinear", antialias=True)
    elif image_size > x.shape[-1]:
        # As F.interpolate, without its detour on CUDA where algorithms must be deterministic.
        x = torch.ops.aten.upsample_bilinear2d(x, [image_size, image_size], False)
    return x


class EpochCounter:
    """The epoch that a loader draws next: Lightning calls `set_epoch` on a loader's `sampler`."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch


class TrainBatches:
    """One epoch of augmented training batches; its order and draws depend on (seed, epoch) alone.

    An epoch that was stopped begins where it was left, at the data module's `position`; its length
    stays that of the whole epoch, as Lightning expects.

    Under DDP each rank draws its own share, of equal size, without padding: at most num_ranks - 1
    images sit out an epoch. So does a last batch of one image, which batch normalisation rejects.
    """

    def __init__(
        self,
        datamodule: "FashionMNISTDataModule",
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
        lonely = batch_size > 1 and num_images % batch_size == 1
        self.num_images = num_images - 1 if lonely else num_images

    def __len__(self) -> int:
        return -(-self.num_images // self.datamodule.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning asks for the iterator before it sets the epoch.
        epoch, (current_epoch, batches_done) = self.sampler.epoch, self.datamodule.position
        first = batches_done if current_epoch == epoch else 0
        yield from self.draw(0 if self.same_every_epoch else epoch, first)

    def draw(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `first` on."""
        data = self.datamodule
        order = torch.randperm(
            len(data.train_indices), generator=generator(data.seed, ORDER_STREAM, epoch)
        )
        share = data.train_indices[order[self.rank :: self.num_ranks][: self.num_images]]
        share = share.to(data.tensor_device)  # once an epoch: a step then waits for no copy
        for step, indices in enumerate(share.split(data.batch_size)[first:], start=first):
            keys = (data.seed, AUGMENT_STREAM, epoch, step, self.rank)
            images = data.train.images[indices]
            if data.augment:
                images = data.augment(images, generator(*keys, device=images.device))
            yield data.to_input(images), data.train.labels[indices]


class EvalBatches:
    """Every image of a split once, in order, divided over any number of ranks.

    Every rank gets the same number of batches (their sizes differ by at most one image): DDP
    broadcasts buffers in each forward pass, and would hang where one rank had a batch more.
    """

    def __init__(
        self,
        datamodule: "FashionMNISTDataModule",
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


class FashionMNISTDataModule(L.LightningDataModule):
    """Train, validation and test batches: images (B, 1, H, W) float32, labels (B,) int64.

    Args:
        source: the images, real or drawn.
        batch_size: images a training step, on each rank; the last batch of an epoch is smaller.
        eval_batch_size: images a validation or test step.
        val_size: validation images, taken from the training images.
        split_seed: which images they are.
        validate_on_test: report A's protocol: train on all training images, and let the test set
            stand in for the validation set. The validation figures are then optimistic.
        normalize: shift and scale the pixels to mean 0 and standard deviation 1.
        image_size: height and width in pixels that the network sees.
        device: where the images live; "auto" is the training device.
        augment: changes training images (B, 28, 28) uint8, or None.
        seed: batch order and augmentation are functions of it, the epoch and the step.
    """

    train: LabelledImages
    test: LabelledImages
    train_indices: Tensor
    val_indices: Tensor

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: PositiveInt,
        eval_batch_size: PositiveInt = 1000,
        val_size: PositiveInt = 12000,
        split_seed: NonNegativeInt = 0,
        validate_on_test: bool = False,
        normalize: bool = True,
        image_size: PositiveInt = 28,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        augment: Augment | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        check_val_size(val_size, source.num_train)
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.validate_on_test = validate_on_test
        self.normalize = normalize
        self.image_size = image_size
        self.device = device
        self.augment = augment
        self.seed = seed
        self.tensor_device = torch.device("cpu")
        self.position = (0, 0)  # epochs done, and batches done of the next; kept in checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the position; everything else follows from the arguments."""
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a checkpoint's position. Unlike a loader's, this state is restored in time."""
        epochs_done, batches_done = state_dict["position"]
        self.position = (epochs_done, batches_done)

    def prepare_data(self) -> None:
        """Fetch missing files, in one process per machine."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load all images onto the data device and split them; later calls only move them."""
        if not hasattr(self, "train"):
            self.train, self.test = self.source.load()
            if self.validate_on_test:
                self.train_indices = torch.arange(len(self.train.labels))
            else:
                self.train_indices, self.val_indices = stratified_split(
                    self.train.labels, self.val_size, self.split_seed
                )
        self.move_to(self._choose_device())

    def move_to(self, device: torch.device) -> None:
        """Move all images, which `setup` has loaded."""
        self.tensor_device = device
        self.train = LabelledImages(*(part.to(device) for part in self.train))
        self.test = LabelledImages(*(part.to(device) for part in self.test))

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch to the training device, where it usually is already."""
        images, labels = batch
        ahead = device.type != "cpu"  # the CPU would read what has not arrived yet
        return images.to(device, non_blocking=ahead), labels.to(device, non_blocking=ahead)

    def _choose_device(self) -> torch.device:
        if self.device == "auto":
            return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "Expected a CUDA device for data.device=cuda, but PyTorch sees none; "
                "use data.device=auto."
            )
        return torch.device(self.device)

    def to_input(self, images: Tensor) -> Tensor:
        """Turn images (B, 28, 28) uint8 into network input (B, 1, H, W) float32."""
        return to_input(images, image_size=self.image_size, normalize=self.normalize)

    def images_of(self, split: Literal["val", "test"]) -> LabelledImages:
        """Return the images (N, 28, 28) uint8 and labels (N,) int64 that `setup` has loaded."""
        if split == "test" or self.validate_on_test:
            return self.test
        indices = self.val_indices.to(self.tensor_device)
        return LabelledImages(*(part[indices] for part in self.train))

    def train_dataloader(self) -> TrainBatches:
        """Return the augmented training batches of this rank."""
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        return TrainBatches(self, *self._rank(), same_every_epoch=overfit)

    def val_dataloader(self) -> EvalBatches:
        """Return the validation batches of this rank."""
        return EvalBatches(self, self.images_of("val"), *self._rank())

    def test_dataloader(self) -> EvalBatches:
        """Return the test batches of this rank."""
        return EvalBatches(self, self.images_of("test"), *self._rank())

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
