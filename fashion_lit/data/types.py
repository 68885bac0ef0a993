"""Types of the data: batches and settings."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from torch import Tensor

# Images (B, C, H, W) float32; labels (B,) int64 or, if mixed, shares of classes (B, num_classes)
# float32; and, if a run has teachers, the pixels of its training images, (B, H, W) or (B, 3, H, W)
# uint8
Batch = tuple[Tensor, ...]

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = float | list[float]  # for every image; or [strength, probability]


def check_pixels(value: int, info: ValidationInfo) -> int:
    """Return a number of pixels; raise ValueError unless it is less than an image's side.

    The context of the validation is the image source; without it, any number is valid.
    """
    if info.context is not None and value >= info.context.image_size:
        raise ValueError(f"less than {info.context.image_size}")
    return value


NumPixels = Annotated[int, Field(ge=0), AfterValidator(check_pixels)]


def up_to(limit: float) -> BeforeValidator:
    """Return a validator of a strength: 0 to `limit`, or [strength, probability], both above 0."""

    def check(value: Any) -> Any:
        if not isinstance(value, list):
            is_valid = is_number(value) and 0 <= value <= limit
        else:
            is_valid = len(value) == 2 and all(map(is_number, value))
            is_valid = is_valid and 0 < value[0] <= limit and 0 < value[1] <= 1
        if not is_valid:
            raise ValueError(
                f"a number from 0 to {limit:g}, or one above 0 with a probability above 0, as in "
                f"[{limit / 2:g},0.5]"
            )
        return value

    return BeforeValidator(check)


def check_range(value: Any) -> Any:
    """Return two ascending shares; raise ValueError for other values."""
    pair = list(value) if isinstance(value, list | tuple) else []
    if not (len(pair) == 2 and all(map(is_number, pair)) and 0 < pair[0] <= pair[1] <= 1):
        raise ValueError(
            "two ascending shares of the image, above 0 and at most 1, as in [0.1,0.3]"
        )
    return value


def is_number(value: Any) -> bool:
    """Return whether a value is an int or a float; true and false are none."""
    return type(value) in (int, float)


ShareRange = Annotated[Sequence[float], BeforeValidator(check_range)]


def pair_of(strength: Strength) -> tuple[float, float]:
    """Return a strength and its probability, which is 1 unless it is given."""
    return (strength[0], strength[1]) if isinstance(strength, list) else (strength, 1.0)
