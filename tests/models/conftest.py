"""What tests of several modules use to compare two implementations."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

Copy = Callable[[nn.Module, nn.Module], None]


@pytest.fixture
def copy_in_order() -> Copy:
    """Copy a network's state into one with the same layers in the same order but other names."""

    def copy(source: nn.Module, target: nn.Module) -> None:
        values, places = source.state_dict().values(), target.state_dict().values()
        assert len(values) == len(places)
        with torch.no_grad():
            for value, place in zip(values, places, strict=True):
                place.copy_(value.reshape(place.shape))

    return copy
