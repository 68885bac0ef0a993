"""Split images by class into two parts: training and validation images, or fewer to train on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fashion_lit.errors import UserError
from fashion_lit.text import shorten


def stratified_split(labels: Tensor, val_size: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels` (N,) into sorted train and validation indices, both int64.

    Each class contributes its share of `val_size`, to within one image. numpy's RandomState is
    used because its stream is frozen (NEP 19): the split is the same on every machine and with
    every numpy version.
    """
    random = np.random.RandomState(split_seed)
    classes = labels.cpu().numpy()
    counts = np.bincount(classes)
    shares = counts * val_size / len(classes)
    val_counts = np.floor(shares).astype(int)
    largest_remainders = np.argsort(val_counts - shares, kind="stable")
    val_counts[largest_remainders[: val_size - val_counts.sum()]] += 1
    in_val = np.zeros(len(classes), dtype=bool)
    for class_index, val_count in enumerate(val_counts):
        members = np.flatnonzero(classes == class_index)
        in_val[members[random.permutation(len(members))[:val_count]]] = True
    return torch.from_numpy(np.flatnonzero(~in_val)), torch.from_numpy(np.flatnonzero(in_val))


def number_of(size: float, num_images: int) -> int:
    """Return a number of images that is given as such, or as a share (a float) of `num_images`."""
    return max(1, round(size * num_images)) if isinstance(size, float) else size


def check_every_class(labels: Tensor, class_names: Sequence[str]) -> None:
    """Raise UserError unless there is an image of each class among those to train on.

    Args:
        labels: their classes (N,) int64.
        class_names: the classes.
    """
    counts = labels.bincount(minlength=len(class_names)).tolist()
    missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if missing:
        raise UserError(
            f"Expected images of all {len(class_names)} classes among the {len(labels):,} to train "
            f"on, but there are none of {shorten(', '.join(missing), 200)}; give such images, or "
            "change data.val_size or data.train_size."
        )


def check_sizes(num_train: int, val_size: int, train_size: int | None) -> int:
    """Return the number of images to train on; raises UserError if there are not as many.

    Args:
        num_train: images to split.
        val_size: how many of them validate.
        train_size: how many of the others train; None: all.
    """
    if val_size >= num_train:
        raise UserError(
            f"Expected `data.val_size` to be smaller than the {num_train:,} training images that "
            f"it is taken from, but got {val_size:,}."
        )
    if train_size is not None and train_size > num_train - val_size:
        raise UserError(
            f"Expected `data.train_size` to be at most the {num_train - val_size:,} images that "
            f"are left to train on, but got {train_size:,}."
        )
    return num_train - val_size if train_size is None else train_size
