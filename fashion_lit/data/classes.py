"""Classes by name: loss weights, lists of classes, and how often an epoch draws each class.

    weights_in_order({"Shirt": 2})  # [1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    epoch_order(labels, weights, generator(0))  # (N,) int64: which images an epoch draws, in order

Case and characters other than letters do not matter in names.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, PositiveFloat
from torch import Generator, Tensor

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES, CLASS_TAGS, NUM_CLASSES


def weights_in_order(weights: Any) -> Any:
    """Convert {class name: weight} to ten weights in the order of CLASS_NAMES, 1 for the others.

    Other values stay the same. Raises ValueError for an unknown name, one that is given twice, or
    none at all.
    """
    if not isinstance(weights, Mapping):
        return weights
    if not weights:
        raise ValueError("a weight for each of some classes, or null")
    by_place = {place_of(name): weight for name, weight in weights.items()}
    if None in by_place or len(by_place) < len(weights):
        raise ValueError(f"a weight for each of some classes ({', '.join(CLASS_TAGS)})")
    return [by_place.get(place, 1.0) for place in range(NUM_CLASSES)]


def names_in_order(names: Any) -> Any:
    """Return a list of classes as in CLASS_NAMES, in its order and without repetitions.

    None stays None. Raises ValueError for anything else.
    """
    if names is None:
        return None
    places = {place_of(name) for name in names} if isinstance(names, list) else set()
    if not places or None in places:
        raise ValueError(f"null or a list of classes ({', '.join(CLASS_NAMES)})")
    return [name for place, name in enumerate(CLASS_NAMES) if place in places]


def place_of(name: Any) -> int | None:
    """Return the place of a class in CLASS_NAMES, or None if there is no such class."""
    places = {_letters(known): place for place, known in enumerate(CLASS_NAMES)}
    return places.get(_letters(str(name)))


def class_tags(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes for metrics and TensorBoard, which splits at slashes.

    "T-shirt/top" becomes "T-shirt_top". They are unique; `check_class_names` refuses names whose
    tags are not.
    """
    return tuple(name.replace("/", "_").replace(" ", "_") for name in class_names)


def _letters(name: str) -> str:
    return "".join(filter(str.isalpha, name)).lower()


TenWeights = Annotated[list[PositiveFloat], Field(min_length=NUM_CLASSES, max_length=NUM_CLASSES)]
ClassWeights = Annotated[TenWeights | None, BeforeValidator(weights_in_order)]
ClassNames = Annotated[list[str] | None, BeforeValidator(names_in_order)]


def class_quotas(labels: Tensor, weights: Sequence[float]) -> list[int]:
    """Return how many of an epoch's N images each class gets; they add up to N, that of `labels`.

    A class's share is proportional to its number of images times its weight. Shares are rounded by
    the largest remainder, so each is exact to within one image.

    Args:
        labels: classes (N,) int64 of the training images, on the CPU.
        weights: ten weights in the order of CLASS_NAMES.
    """
    wanted = labels.bincount(minlength=NUM_CLASSES).double() * torch.tensor(weights).double()
    shares = wanted * (len(labels) / wanted.sum())
    quotas = shares.floor()
    rest = len(labels) - int(quotas.sum())
    quotas[(quotas - shares).argsort(stable=True)[:rest]] += 1
    return [int(quota) for quota in quotas]


def epoch_order(labels: Tensor, weights: Sequence[float] | None, generator: Generator) -> Tensor:
    """Return the indices (N,) int64 of an epoch's images, in random order.

    Without weights, an epoch draws every image once. With weights, the epoch has the same length
    and each class its share of `class_quotas`; within a class the numbers of draws of two images
    differ by at most one.

    Args:
        labels: classes (N,) int64 of the training images, on the CPU.
        weights: how often each class is drawn, in the order of CLASS_NAMES, or None.
        generator: a generator on the CPU.
    """

    def shuffled(values: Tensor) -> Tensor:
        return values[torch.randperm(len(values), generator=generator)]

    if weights is None:
        return torch.randperm(len(labels), generator=generator)
    drawn = []
    for place, quota in enumerate(class_quotas(labels, weights)):
        members = shuffled((labels == place).nonzero()[:, 0])
        num_repetitions = -(-quota // max(1, len(members)))
        drawn.append(members.repeat(num_repetitions)[:quota])
    return shuffled(torch.cat(drawn))
