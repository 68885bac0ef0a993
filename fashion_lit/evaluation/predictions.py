"""Predictions of models on the images of a split, and their mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fashion_lit.errors import UserError

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for each image of a split.

    Args:
        probabilities: class probabilities (N, C) float32; each row sums to 1.
        labels: true classes (N,) int64.
        images: (N, H, W) or, in colour, (N, 3, H, W) uint8.
    """

    probabilities: Tensor
    labels: Tensor
    images: Tensor

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image: (N,) int64."""
        return self.probabilities.argmax(1)

    @property
    def correct(self) -> Tensor:
        """Whether each image is classified correctly: (N,) bool."""
        return self.predicted == self.labels

    @property
    def confidence(self) -> Tensor:
        """The probability of the predicted class: (N,) float32."""
        return self.probabilities.max(1).values


def same_images(members: Sequence[Predictions]) -> None:
    """Raise UserError unless all members predict the same images, in the same order."""
    for other in members[1:]:
        if not torch.equal(members[0].images, other.images):
            raise UserError(
                "Expected runs on the same images, but theirs differ, as with another "
                "data.val_size or data.split_seed; evaluate them one by one."
            )


def ensemble(members: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """Return predictions with the members' mean probabilities.

    Raises UserError unless all members predict the same images.

    Args:
        members: the members' predictions.
        weights: weight of each member, not negative; their sum is 1. None: all are equal.
    """
    same_images(members)
    if weights is None:
        mean = torch.stack([member.probabilities for member in members]).mean(0)
    else:
        pairs = zip(weights, members, strict=True)
        parts = [weight * member.probabilities.double() for weight, member in pairs]
        mean = torch.stack(parts).sum(0).float()
    return Predictions(mean, members[0].labels, members[0].images)
