"""Types of the data: batches, labelled images and the protocol of image sources."""

from typing import NamedTuple, Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) float32, labels (B,) int64


class LabelledImages(NamedTuple):
    """Images (N, 28, 28) uint8 in 0..255 and their labels (N,) int64 in 0..9."""

    images: Tensor
    labels: Tensor


class ImageSource(Protocol):
    """A source of images: FashionMNIST or SyntheticGarments."""

    title: str  # name of the data set
    num_train: int
    num_test: int

    def prepare(self) -> None:
        """Fetch missing files; called in one process per machine."""
        ...

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the training images, before the split, and the test images."""
        ...
