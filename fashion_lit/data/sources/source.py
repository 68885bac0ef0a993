"""What every source of images is: a data set that fits into memory.

class MySource(ImageSource):
def __init__(self, *, root: str) -> None: …  # sets the attributes below
def load(self) -> tuple[LabelledImages, LabelledImages]: …
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator
from torch import Tensor

from fashion_lit.data.classes import check_class_names, check_text
from fashion_lit.errors import UserError
from fashion_lit.text import describe_error, shorten

MAX_IMAGE_SIZE = 4096  # pixels
NUM_GREYS = 256
CHUNK = 1000  # images whose pixels are counted at once
# Attributes that a source has to set, and their types.
ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "class_names": (list, tuple),
    "num_train": int,
    "num_test": int,
    "image_size": int,
    "channels": int,
}
EXAMPLES = {str: "a text", int: "a whole number", (list, tuple): "a list of texts"}


def check_root(value: Any) -> Any:
    """Return the text of a folder; raise ValueError for other values."""
    if not isinstance(value, str) or not value:
        raise ValueError("the folder of the images, as in data.root=FOLDER")
    return value


Root = Annotated[str, BeforeValidator(check_root)]


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


def check_source(source: ImageSource) -> None:
    """Raise UserError unless the attributes of an image source are possible.

    Names and numbers become plain ones; a source may have NumPy's.
    """
    kind = type(source).__name__
    for name, types in ATTRIBUTES.items():
        value = getattr(source, name, None)
        if not isinstance(value, types) or isinstance(value, bool):
            given = "it has none" if value is None else f"got {shorten(repr(value))}"
            raise UserError(f"Expected {kind} to set `{name}`, {EXAMPLES[types]}, but {given}.")
    title, channels = source.title, source.channels
    check_text(title, f"the `title` of {kind}")
    check_class_names(source.class_names, title)
    make_plain(source, "title", str(title))
    make_plain(source, "class_names", tuple(map(str, source.class_names)))
    if source.num_train < 1 or source.num_test < 0:
        raise UserError(
            f"Expected training images in {title}, but it has {source.num_train:,}, and "
            f"{source.num_test:,} test images."
        )
    if not 0 < source.image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"Expected images of 1 to {MAX_IMAGE_SIZE:,} pixels in height and width, but those of "
            f"{title} have {source.image_size:,}."
        )
    if channels not in (1, 3):
        raise UserError(
            f"Expected images of 1 or 3 channels, but those of {title} have {channels}."
        )
    for name in ("mean", "std"):
        values = getattr(source, name)
        try:
            numbers = None if values is None else [float(value) for value in values]
        except (TypeError, ValueError, RuntimeError):
            numbers = []
        if numbers is not None and not (
            len(numbers) == channels and all(map(math.isfinite, numbers))
        ):
            raise UserError(
                f"Expected `{name}` of {title} to hold a number for each of its {channels} "
                f"channels, or to be None, but got {shorten(repr(values))}."
            )
        make_plain(source, name, numbers)
    if source.std is not None and min(source.std) <= 0:
        raise UserError(f"Expected `std` of {title} to be above 0, but got {source.std!r}.")


def make_plain(source: ImageSource, name: str, plain: Any) -> None:
    """Set an attribute to its plain value if it has, or holds, another type, such as NumPy's."""
    if _types_in(getattr(source, name)) != _types_in(plain):
        setattr(source, name, plain)


def _types_in(value: Any) -> Any:
    return [type(v) for v in value] if isinstance(value, list | tuple) else type(value)


@contextmanager
def errors_of(source: ImageSource, task: str) -> Iterator[None]:
    """Raise UserError with the error that a user's source raises in a task."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise  # its own sentence names the file
        raise UserError(
            f"Expected {type(source).__name__} to {task}, but it raised {describe_error(error)}."
        ) from error


def load_from(source: ImageSource) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and test images of a source.

    Raises UserError with the error that a user's source raises, and unless the images are what the
    source's attributes say.
    """
    with errors_of(source, "load training and test images"):
        train, test = (LabelledImages(*part) for part in source.load())
    check_images(source, train, test)
    return train, test


def check_images(source: ImageSource, train: LabelledImages, test: LabelledImages) -> None:
    """Raise UserError unless what a source has loaded is what its attributes say."""
    side = source.image_size
    pixels = (3, side, side) if source.channels == 3 else (side, side)
    last = len(source.class_names) - 1
    for part, count, name in (
        (train, source.num_train, "training"),
        (test, source.num_test, "test"),
    ):
        expected = ((count, *pixels), torch.uint8, (count,), torch.int64)
        found = [
            (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, Tensor) else (type(tensor),)
            for tensor in part
        ]
        if (*found[0], *found[1]) != expected:
            raise UserError(
                f"Expected {source.title} to load {name} images {expected[0]} uint8 and labels "
                f"{expected[2]} int64, but got {found[0]} and {found[1]}."
            )
        if count and not 0 <= int(part.labels.min()) <= int(part.labels.max()) <= last:
            raise UserError(
                f"Expected labels of 0 to {last} in the {name} images of {source.title}, but got "
                f"{int(part.labels.min())} to {int(part.labels.max())}."
            )


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, on a scale of [0, 1].

    Both are computed from whole numbers, how often each grey value occurs, and so are the same on
    every machine. A channel with one grey value has the standard deviation 1.

    Args:
        images: (N, H, W) or (N, 3, H, W) uint8, on the CPU.
    """
    channels = images[:, None] if images.ndim == 3 else images
    means, deviations = [], []
    for channel in channels.unbind(1):
        counts = torch.zeros(NUM_GREYS, dtype=torch.int64)
        for part in channel.split(CHUNK):
            counts += part.flatten().bincount(minlength=NUM_GREYS)
        number, total, squares = (
            sum(count * grey**power for grey, count in enumerate(counts.tolist()))
            for power in (0, 1, 2)
        )
        variance = number * squares - total**2  # of the greys, times number ** 2; exact
        means.append(total / number / (NUM_GREYS - 1))
        deviations.append(math.sqrt(variance) / number / (NUM_GREYS - 1) if variance else 1.0)
    return tuple(means), tuple(deviations)


def fingerprint(class_names: Sequence[str], *parts: LabelledImages) -> str:
    """Return the SHA-256 of the names of the classes and of all images and labels, in order.

    Args:
        class_names: the names.
        parts: the training and the test images, on the CPU.
    """
    shapes = [list(tensor.shape) for part in parts for tensor in part]
    digest = hashlib.sha256(json.dumps([list(class_names), shapes]).encode())
    for images, labels in parts:
        digest.update(images.contiguous().numpy().data)
        digest.update(labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
