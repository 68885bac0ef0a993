"""The LightningDataModule: all images in memory, a fixed split, and batched preprocessing.

    datamodule = FashionMNISTDataModule(FashionMNIST(), batch_size=256, seed=0)

The images stay uint8 (47 MB in total) on the training device. Selecting a batch is one index
operation; augmentation, conversion, normalisation and resizing then run on the whole batch there.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fashion_lit.data.augment import Augment
from fashion_lit.data.classes import ClassWeights, epoch_order
from fashion_lit.data.randomness import EpochCounter, generator
from fashion_lit.data.sources.fashion_mnist import PIXEL_MEAN, PIXEL_STD
from fashion_lit.data.sources.source import ImageSource, LabelledImages
from fashion_lit.data.split import check_sizes, stratified_split
from fashion_lit.data.types import Batch
from fashion_lit.errors import UserError

ORDER_STREAM, AUGMENT_STREAM = 0, 1  # separate the random streams of one epoch


def to_input(images: Tensor, *, image_size: int, normalize: bool) -> Tensor:
    """Convert images (B, H, W) uint8 to network input (B, 1, image_size, image_size) float32.

    Pixels are in [0, 1] or, with `normalize`, have mean 0 and standard deviation 1 over the
    training set.
    """
    x = images[:, None].float() / 255  # (B, 1, H, W)
    if normalize:
        x = (x - PIXEL_MEAN) / PIXEL_STD
    if image_size < x.shape[-1]:
        x = F.interpolate(x, size=image_size, mode="bilinear", antialias=True)
    elif image_size > x.shape[-1]:
        # Same result as F.interpolate, which on CUDA switches to a slower decomposition when
        # deterministic algorithms are required.
        x = torch.ops.aten.upsample_bilinear2d(x, [image_size, image_size], False)
    return x


class TrainBatches:
    """Iterate over the augmented training batches of an epoch.

    Order and augmentation depend on (seed, epoch) only. An interrupted epoch resumes at the data
    module's `position`; `len` is that of the whole epoch, as Lightning expects.

    Under DDP each rank draws a disjoint share of equal size, so an epoch omits at most
    num_ranks - 1 images, and a last batch of one image, which batch normalisation rejects.
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
    """Provide train, validation and test batches; see `Batch`.

    Args:
        source: image source, FashionMNIST or SyntheticGarments.
        batch_size: images per training step and rank; the last batch of an epoch may be smaller.
        eval_batch_size: maximum images per validation or test step and rank.
        val_size: number of validation images, taken from the training images.
        train_size: number of images to train on, of those that `val_size` leaves; None: all.
        split_seed: seed of the train/validation split, and of the choice of `train_size` images.
        class_sampling: how often a class is drawn compared with the others, for each class; see
            `epoch_order`. An epoch has as many images as without. None: every image once.
        validate_on_test: use report A's protocol: train on all training images and validate on the
            test set. The validation metrics are then optimistic.
        normalize: shift and scale the pixels to mean 0 and standard deviation 1.
        image_size: height and width of the network's input, in pixels.
        device: device that stores the images; "auto" is the training device.
        augment: augmentation of training images (B, 28, 28) uint8, or None.
        seed: seed of batch order and augmentation, which depend on it, the epoch and the step;
            augmentation also depends on the rank.
    """

    train: LabelledImages
    test: LabelledImages
    train_indices: Tensor
    train_labels: Tensor
    val_indices: Tensor

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: PositiveInt,
        eval_batch_size: PositiveInt = 1000,
        val_size: PositiveInt = 12000,
        train_size: PositiveInt | None = None,
        split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
        class_sampling: ClassWeights = None,
        validate_on_test: bool = False,
        normalize: bool = True,
        image_size: Annotated[int, Field(gt=0, le=4096)] = 28,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        augment: Augment | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        num_held_out = 0 if validate_on_test else val_size
        self.num_train = check_sizes(source.num_train, num_held_out, train_size)
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.train_size = train_size
        self.split_seed = split_seed
        self.class_sampling = class_sampling
        self.validate_on_test = validate_on_test
        self.normalize = normalize
        self.image_size = image_size
        self.device = device
        self.augment = augment
        self.seed = seed
        self.tensor_device = torch.device("cpu")
        self.with_pixels = False  # whether training batches also have their images as uint8
        self.position = (0, 0)  # (finished epochs, finished batches of the next); in checkpoints

    @property
    def description(self) -> str:
        """The data set's name and the numbers of images in its splits."""
        num_test = self.source.num_test
        others = f"{self.val_size:,} to validate, {num_test:,} to test"
        if self.validate_on_test:
            others = f"{num_test:,} to validate and test on"
        return f"{self.source.title}: {self.num_train:,} images to train on, {others}"

    def state_dict(self) -> dict[str, Any]:
        """Return the position; all other state is determined by the constructor's arguments."""
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at a checkpoint's position. Lightning would restore a loader's state too late."""
        epochs_done, batches_done = state_dict["position"]
        self.position = (epochs_done, batches_done)

    def prepare_data(self) -> None:
        """Fetch missing files; Lightning calls this in one process per machine."""
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load and split all images on the first call; every call moves them to the data device."""
        if not hasattr(self, "train"):
            self.train, self.test = self.source.load()
            if self.validate_on_test:
                self.train_indices = torch.arange(len(self.train.labels))
            else:
                self.train_indices, self.val_indices = stratified_split(
                    self.train.labels, self.val_size, self.split_seed
                )
            if self.train_size is not None:
                labels = self.train.labels[self.train_indices]
                _, chosen = stratified_split(labels, self.train_size, self.split_seed)
                self.train_indices = self.train_indices[chosen]
            self.train_labels = self.train.labels[self.train_indices]  # stays on the CPU
        self.move_to(self._choose_device())

    def move_to(self, device: torch.device) -> None:
        """Move all images and labels to `device`, after `setup` has loaded them."""
        self.tensor_device = device
        self.train = LabelledImages(*(part.to(device) for part in self.train))
        self.test = LabelledImages(*(part.to(device) for part in self.test))

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch to the training device, where it usually is already."""
        overlap = device.type != "cpu"  # a copy to the CPU must finish before the CPU reads it
        return tuple(part.to(device, non_blocking=overlap) for part in batch)

    def _choose_device(self) -> torch.device:
        if self.device == "auto":
            return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "Expected a CUDA device for data.device=cuda, but PyTorch finds none; "
                "use data.device=auto."
            )
        return torch.device(self.device)

    def to_input(self, images: Tensor) -> Tensor:
        """Convert images (B, 28, 28) uint8 to network input (B, 1, H, W) float32."""
        return to_input(images, image_size=self.image_size, normalize=self.normalize)

    def images_of(self, split: Literal["val", "test"]) -> LabelledImages:
        """Return a split's images (N, 28, 28) uint8 and labels (N,) int64, after `setup`."""
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
