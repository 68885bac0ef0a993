"""Classes by name: loss weights, lists of classes, and how often an epoch draws each class.

    weights_in_order({"Shirt": 2}, CLASS_NAMES)  # [1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    epoch_order(labels, weights, generator(0))  # (N,) int64: which images an epoch draws, in order

In names that settings give, case and characters other than letters and digits do not matter, as
long as they still tell one class.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, PositiveFloat, ValidationInfo
from torch import Generator, Tensor

from fashion_lit.errors import UserError
from fashion_lit.text import shorten

MOST_LISTED = 300  # characters of names in a message


def check_class_names(names: Any, title: str) -> None:
    """Raise UserError unless the names of the classes of a data set, `title`, can be told apart."""
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"Expected text as the names of the classes of {title}, but got {_listed(names)}."
        )
    if len(names) < 2:
        raise UserError(
            f"Expected two classes or more in {title}, but got {_listed(names) or 'none'}."
        )
    for name in names:
        check_text(name, f"the name of a class of {title}")
    if padded := [name for name in names if name != name.strip()]:
        raise UserError(
            f"Expected classes of {title} without spaces at the ends of their names, but got "
            f"{padded[0]!r}; rename it."
        )
    by_tag: dict[str, str] = {}
    for name, tag in zip(names, class_tags(names), strict=True):
        if tag in by_tag:
            raise UserError(
                f"Expected classes of {title} whose names differ in more than slashes and spaces, "
                f"but got {by_tag[tag]!r} and {name!r}; rename one of them."
            )
        by_tag[tag] = name


def check_text(text: str, what: str) -> None:
    """Raise UserError for text that no file or terminal can show: control characters, halves."""
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise UserError(
            f"Expected {what} without control characters and in UTF-8, but got "
            f"{shorten(ascii(text))}."
        )


def class_tags(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes for metrics and TensorBoard, which splits at slashes.

    "T-shirt/top" becomes "T-shirt_top". `check_class_names` refuses names whose tags are equal.
    """
    return tuple(re.sub(r"[\s/\\]", "_", name) for name in class_names)


def weights_in_order(weights: Any, class_names: Sequence[str]) -> Any:
    """Convert {class name: weight} to a list with a weight for each class, 1 for the others.

    Other values stay the same. Raises ValueError for an unknown name, one that is given twice, none
    at all, or a list of another length.
    """
    number = len(class_names)
    if isinstance(weights, list) and len(weights) != number:
        raise ValueError(f"a list of {number} values, one for each class")
    if not isinstance(weights, Mapping):
        return weights
    if not weights:
        raise ValueError("a weight for each of some classes, or null")
    by_place = {place_of(name, class_names): weight for name, weight in weights.items()}
    if None in by_place or len(by_place) < len(weights):
        raise ValueError(f"a weight for each of some classes ({_listed(class_tags(class_names))})")
    return [by_place.get(place, 1.0) for place in range(number)]


def names_in_order(names: Any, class_names: Sequence[str]) -> Any:
    """Return a list of classes as in `class_names`, in its order and without repetitions.

    None stays None. Raises ValueError for anything else.
    """
    if names is None:
        return None
    places = {place_of(name, class_names) for name in names} if isinstance(names, list) else set()
    if not places or None in places:
        raise ValueError(f"null or a list of classes ({_listed(class_names)})")
    return [name for place, name in enumerate(class_names) if place in places]


def place_of(name: Any, class_names: Sequence[str]) -> int | None:
    """Return the place of a class in `class_names`; None if no class, or several, may be meant."""
    if str(name) in class_names:
        return list(class_names).index(str(name))
    wanted = _letters_and_digits(str(name))
    places = [i for i, known in enumerate(class_names) if _letters_and_digits(known) == wanted]
    return places[0] if wanted and len(places) == 1 else None


def _letters_and_digits(name: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", name))).casefold()


def _listed(names: Sequence[Any]) -> str:
    return shorten(", ".join(map(str, names)), MOST_LISTED)


def _check_weights(weights: Any, info: ValidationInfo) -> Any:
    if info.context is not None:
        return weights_in_order(weights, info.context.class_names)
    return list(weights.values()) if isinstance(weights, Mapping) else weights


def _check_names(names: Any, info: ValidationInfo) -> Any:
    if info.context is not None:
        return names_in_order(names, info.context.class_names)
    return list(map(str, names)) if isinstance(names, list) else names


# Settings by class. The context of their validation is the image source, which knows the classes;
# without it, a name may be any.
ClassWeights = Annotated[list[PositiveFloat] | None, BeforeValidator(_check_weights)]
ClassNames = Annotated[list[str] | None, BeforeValidator(_check_names)]


def class_quotas(labels: Tensor, weights: Sequence[float]) -> list[int]:
    """Return how many of an epoch's N images each class gets; they add up to N, that of `labels`.

    A class's share is proportional to its number of images times its weight. Shares are rounded by
    the largest remainder, so each is exact to within one image.

    Args:
        labels: classes (N,) int64 of the training images, on the CPU.
        weights: a weight for each class.
    """
    counts = labels.bincount(minlength=len(weights)).double()
    wanted = counts * torch.tensor(weights).double()
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
        weights: how often each class is drawn, or None.
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
