"""A training step never waits for the device.

A GPU runs asynchronously, and reading a value from it blocks the program until it is computed.
These tests need no GPU: they inspect the operations that torch dispatches.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.transfer import TransferClassifier
from fashion_lit.runs.directory import RunDirectory

# Operations that read a value, or the size of their result, from the device.
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
# Operations that CUDA refuses under torch.use_deterministic_algorithms, from its documentation.
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
    "strong": ["augment=strong", "augment.rotate=10", "augment.brightness=0.2"],
    "report_b": ["experiment=report_b", "precision=bf16", "data.image_size=32"],
    "resnet18": ["model=resnet18", "model.pretrained=false", "data.image_size=32"],
    "wide_resnet": ["model=wide_resnet", "model.network.depth=10", "model.network.width=1",
                    "model.network.attention=cbam", "model.network.drop_path=0.2"],
    "resnet_small_stem": ["model=resnet_small_stem", "model.network.widths=[8,16]",
                          "model.network.num_blocks=[1,1]", "model.network.attention=eca"],
    "densenet": ["model=densenet", "model.network.depth=10"],
    "mobilenet_v2": ["model=mobilenet_v2", "model.network.width=0.1"],
    "vgg": ["model=vgg", "model.network.depth=11"],
    "resnet9": ["model=resnet9", "model.network.width=8", "model.network.attention=se"],
}  # fmt: skip
NUM_STEPS = 12


class Operations(TorchDispatchMode):
    """Records the dispatched operations of each step; a step ends where the next forward begins."""

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
def test_a_step_uses_no_waiting_and_no_nondeterministic_operation(
    model: str, operations: Operations, train: Callable[..., RunDirectory]
) -> None:
    few = ["data.batch_size=10", f"trainer.limit_train_batches={NUM_STEPS}", "test=false"]
    with operations:
        train(*MODELS[model], *few, "trainer.log_every_n_steps=1000")
    assert len(operations.steps) == 1 + NUM_STEPS
    for number, names in enumerate(operations.steps[1:-1]):  # the last one includes the epoch's end
        assert not set(names) & set(WAITING), number
        assert not set(names) & set(NOT_DETERMINISTIC), number
        assert len(names) > 50, number  # forward, backward and step were seen


def test_a_teacher_adds_no_waiting_and_no_nondeterministic_operation(
    finished_run: RunDirectory, operations: Operations, train: Callable[..., RunDirectory]
) -> None:
    few = ["data.batch_size=10", "trainer.limit_train_batches=4", "test=false"]
    with operations:
        train(*few, f"teacher={finished_run.path.as_posix()}", "trainer.log_every_n_steps=1000")
    for names in operations.steps[2:-1]:
        assert not set(names) & {*WAITING, *NOT_DETERMINISTIC}
        assert "xlogy" in names  # of the divergence


def test_the_check_for_nan_waits_for_the_device(
    operations: Operations, train: Callable[..., RunDirectory]
) -> None:
    few = ["data.batch_size=10", f"trainer.limit_train_batches={NUM_STEPS}", "test=false"]
    with operations:
        train(*few, "trainer.log_every_n_steps=5")
    steps = enumerate(operations.steps[1:-1], start=1)
    # The curves' points only copy values to the CPU, which is no operation for values on the CPU.
    assert [number for number, names in steps if set(names) & set(WAITING)] == [5, 10]
