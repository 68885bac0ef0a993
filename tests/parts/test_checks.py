"""Parts that are tried before a run is made."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fashion_lit.errors import UserError
from fashion_lit.parts.checks import check_parts, try_augmentation

GREY = SimpleNamespace(channels=1, image_size=28)


def test_callbacks_whose_states_would_overwrite_each_other_are_refused() -> None:
    stopping = {"name": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}
    check_parts({"callbacks": {"a": stopping, "b": stopping | {"monitor": "val/accuracy"}}}, GREY)
    with pytest.raises(UserError, match=r"`callbacks\.a` and `callbacks\.b`"):
        check_parts({"callbacks": {"a": stopping, "b": stopping}}, GREY)


def test_an_augmentation_keeps_shape_and_type() -> None:
    def twice(images: Tensor, generator: torch.Generator) -> Tensor:
        return images.repeat_interleave(2, -1)

    def broken(images: Tensor, generator: torch.Generator) -> Tensor:
        raise KeyError("x")

    own: dict[Callable[..., Any], str] = {
        twice: r"\(8, 28, 56\) torch.uint8",
        (lambda images, generator: images.float()): "torch.float32",
        (lambda images, generator: None): "NoneType",
        broken: "KeyError",
        (lambda images: images): "TypeError",
    }
    for augmentation, found in own.items():
        with pytest.raises(UserError, match=found):
            try_augmentation(augmentation, GREY)
    colours = SimpleNamespace(channels=3, image_size=28)
    try_augmentation(lambda images, generator: images.flip(-1), colours)
