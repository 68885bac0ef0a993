"""What one training step asks of the device: nothing that it would have to wait for.

A GPU runs behind the program that asks it; a question for a value makes the program wait. Counted
here without one, by the operations that torch dispatches.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.transfer import TransferClassifier
from fashion_lit.runs.directory import RunDirectory

# What needs a value, or the size of an answer, from the device.
WAITING = (
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique",
    "unique2",
    "unique_consecutive",
    "unique_dim",
)
# What CUDA refuses under torch.use_deterministic_algorithms: see that function's documentation.
NOT_DETERMINISTIC = (
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss",
    "_embedding_bag",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "bincount",
    "cumsum",
    "fractional_max_pool2d_backward",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "max_pool3d_with_indices_backward",
    "max_unpool2d",
    "median",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "replication_pad2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
)
MODELS = {
    "default": [],
    "adam": ["optimizer=adam", "augment=flip_shift_erase"],
    "report_b": ["experiment=report_b", "precision=bf16", "data.image_size=32"],
    "resnet18": ["model=resnet18", "model.pretrained=false", "data.image_size=32"],
}
NUM_STEPS = 12


class Operations(TorchDispatchMode):
    """Lists what is dispatched, step by step; a step ends where the next one's forward begins."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[str]] = [[]]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.steps[-1].append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    found = Operations()
    for classifier in (CNNClassifier, TransferClassifier):
        step = classifier.training_step

        def begin(self: Any, *arguments: Any, step: Callable[..., Any] = step) -> torch.Tensor:
            found.steps.append([])
            return step(self, *arguments)

        monkeypatch.setattr(classifier, "training_step", begin)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_step_asks_for_no_value_and_for_nothing_that_adds_in_no_fixed_order(
    model: str, operations: Operations, train: Callable[..., RunDirectory]
) -> None:
    few = ["data.batch_size=10", f"trainer.limit_train_batches={NUM_STEPS}", "test=false"]
    with operations:
        train(*MODELS[model], *few, "trainer.log_every_n_steps=1000")
    assert len(operations.steps) == 1 + NUM_STEPS
    for number, names in enumerate(operations.steps[1:-1]):  # the last one's end is the epoch's
        assert not set(names) & set(WAITING), number
        assert not set(names) & set(NOT_DETERMINISTIC), number
        assert len(names) > 50, number  # forward, backward and step were seen


def test_a_look_for_nan_is_seen_to_ask(
    operations: Operations, train: Callable[..., RunDirectory]
) -> None:
    few = ["data.batch_size=10", f"trainer.limit_train_batches={NUM_STEPS}", "test=false"]
    with operations:
        train(*few, "trainer.log_every_n_steps=5")
    steps = enumerate(operations.steps[1:-1], start=1)
    # The curves' points copy values to the CPU; where they are there already, nothing is asked.
    assert [number for number, names in steps if set(names) & set(WAITING)] == [5, 10]
