"""The LightningDataModule: all images in memory, a fixed split, and batched preprocessing.

    datamodule = FashionMNISTDataModule(FashionMNIST(), batch_size=256, seed=0)

The images stay uint8 (Fashion-MNIST's are 55 MB) on the training device. Selecting a batch is one
index operation; augmentation, conversion, normalisation and resizing then run on the whole batch
there.
"""

from typing import Annotated, Any, Literal

import lightning as L
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fashion_lit.data.augment import Augment
from fashion_lit.data.batches import EvalBatches, TrainBatches, to_input
from fashion_lit.data.classes import ClassWeights
from fashion_lit.data.sources.source import (
    MAX_IMAGE_SIZE,
    ImageSource,
    LabelledImages,
    check_source,
    errors_of,
    fingerprint,
    load_from,
    mean_and_std,
)
from fashion_lit.data.split import (
    check_every_class,
    check_sizes,
    number_of,
    stratified_split,
)
from fashion_lit.data.types import Batch
from fashion_lit.errors import UserError


class FashionMNISTDataModule(L.LightningDataModule):
    """Provide train, validation and test batches; see `Batch`.

    Args:
        source: where the images come from, such as FashionMNIST.
        batch_size: images per training step and rank; the last batch of an epoch may be smaller.
        eval_batch_size: maximum images per validation or test step and rank.
        val_size: number of validation images, taken from the training images, or their share.
        train_size: number of images to train on, of those that `val_size` leaves; None: all.
        split_seed: seed of the train/validation split, and of the choice of `train_size` images.
        class_sampling: how often a class is drawn compared with the others, for each class; see
            `epoch_order`. An epoch has as many images as without. None: every image once.
        validate_on_test: use report A's protocol: train on all training images and validate on the
            test set. The validation metrics are then optimistic.
        normalize: shift and scale the pixels to mean 0 and standard deviation 1.
        image_size: height and width of the network's input, in pixels; None: those of the images.
        device: device that stores the images; "auto" is the training device.
        augment: augmentation of training images, with the classes of the source; or None.
        seed: seed of batch order and augmentation, which depend on it, the epoch and the step;
            augmentation also depends on the rank.

    Attributes, from the source:
        class_names: names of the classes, in the order of their labels.
        channels: 1 or 3.
        mean: of each channel of the training images on a scale of [0, 1]; after `setup`.
        std: their standard deviations; after `setup`.
        fingerprint: SHA-256 of all images, labels and names of classes; after `setup`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
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
        val_size: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = 12000,
        train_size: PositiveInt | None = None,
        split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
        class_sampling: ClassWeights = None,
        validate_on_test: bool = False,
        normalize: bool = True,
        image_size: Annotated[int, Field(gt=0, le=MAX_IMAGE_SIZE)] | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        augment: Augment | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        check_source(source)
        self.source = source
        self.class_names = tuple(source.class_names)
        self.channels = source.channels
        self.val_size = number_of(val_size, source.num_train)
        num_held_out = 0 if validate_on_test else self.val_size
        self.num_train = check_sizes(source.num_train, num_held_out, train_size)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.train_size = train_size
        self.split_seed = split_seed
        self.class_sampling = class_sampling
        self.validate_on_test = validate_on_test
        self.normalize = normalize
        self.image_size = image_size or source.image_size
        self.device = device
        self.augment = augment
        if augment is not None and tuple(augment.class_names) != self.class_names:
            raise UserError(
                f"Expected `class_names` of the augmentation to be those of {source.title}, but "
                "they are others; give Augment(class_names=…) its classes."
            )
        self.seed = seed
        self.tensor_device = torch.device("cpu")
        self.with_pixels = False  # whether training batches also have their images as uint8
        self.position = (0, 0)  # (finished epochs, finished batches of the next); in checkpoints

    @property
    def description(self) -> str:
        """The data set's name and the numbers of images in its splits."""
        num_test = self.source.num_test
        others = (
            f"{self.val_size:,} to validate, {num_test or 'none':{',' * bool(num_test)}} to test"
        )
        if self.validate_on_test:
            others = f"{num_test:,} to validate and test on"
        return f"{self.source.title}: {self.num_train:,} images to train on, {others}"

    def state_dict(self) -> dict[str, Any]:
        """Return the position; the rest is what a network needs that is used without its data."""
        return {
            "position": list(self.position),
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at a checkpoint's position. Lightning would restore a loader's state too late."""
        epochs_done, batches_done = state_dict["position"]
        self.position = (epochs_done, batches_done)

    def prepare_data(self) -> None:
        """Fetch missing files; Lightning calls this in one process per machine."""
        with errors_of(self.source, "prepare its files"):
            self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load and split all images on the first call; every call moves them to the data device."""
        if not hasattr(self, "train"):
            self._load()
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

    def _load(self) -> None:
        source = self.source
        train, test = load_from(source)
        mean, std = source.mean, source.std
        if mean is None or std is None:
            mean, std = mean_and_std(train.images)
        self.mean, self.std = tuple(mean), tuple(std)
        self.fingerprint = fingerprint(self.class_names, train, test)
        self.train, self.test = train, test

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
        """Convert images (B, [3,] H, W) uint8 to network input (B, C, H', W') float32."""
        return to_input(
            images,
            image_size=self.image_size,
            normalize=self.normalize,
            mean=self.mean,
            std=self.std,
        )

    def images_of(self, split: Literal["val", "test"]) -> LabelledImages:
        """Return a split's images (N, [3,] H, W) uint8 and labels (N,) int64, after `setup`.

        Raises UserError for the test images of a source that has none.
        """
        if split == "test" or self.validate_on_test:
            if not self.source.num_test:
                raise UserError(f"Expected test images, but {self.source.title} has none.")
            return self.test
        indices = self.val_indices.to(self.tensor_device)
        return LabelledImages(*(part[indices] for part in self.train))

    def train_dataloader(self) -> TrainBatches:
        """Return the augmented training batches of this rank.

        Raises UserError if there is a class without training images.
        """
        check_every_class(self.train_labels, self.class_names)
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
