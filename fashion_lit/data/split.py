"""Split images by class into two parts: training and validation images, or fewer to train on."""

import numpy as np
import torch
from torch import Tensor

from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.errors import UserError


def stratified_split(labels: Tensor, val_size: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels` (N,) into sorted train and validation indices, both int64.

    Each class contributes its share of `val_size`, to within one image. numpy's RandomState is
    used because its stream is frozen (NEP 19): the split is the same on every machine and with
    every numpy version.
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
