"""What every source of images is: a data set that fits into memory.

class MySource(ImageSource):
def __init__(self, *, root: str) -> None: …  # sets the attributes below
def load(self) -> tuple[LabelledImages, LabelledImages]: …
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class LabelledImages(NamedTuple):
    """Images and their labels.

    Images of one channel are (N, H, W) uint8, of three channels (N, 3, H, W) uint8, both in 0..255;
    labels are (N,) int64 in 0..num_classes - 1.
    """

    images: Tensor
    labels: Tensor


class ImageSource(ABC):
    """Images that fit into memory, with the names of their classes.

    A subclass sets these attributes in its constructor, without reading all images.

    Attributes:
        title: name of the data set.
        class_names: names of the classes in the order of their labels; two or more, all different.
        num_train: number of training images, before the validation images are taken from them.
        num_test: number of test images; 0: there are none.
        image_size: height and width in pixels.
        channels: 1 or 3.
        mean: mean of each channel of the training images on a scale of [0, 1]; None: computed from
            them after `load`.
        std: their standard deviations; None: computed from them.
    """

    title: str
    class_names: Sequence[str]
    num_train: int
    num_test: int
    image_size: int
    channels: int = 1
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def prepare(self) -> None:
        """Fetch missing files; called in one process per machine."""
        return

    @abstractmethod
    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the training images, before the split, and the test images."""
