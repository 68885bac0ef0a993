"""Lightning still has the private attributes used here, and all tricks are undone after a fit."""

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.data.types import Batch
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.training.lightning_internals import STEP_HOOKS, TRICKS, LightningInternals

TINY = {"name": "fast_cnn", "widths": [4, 8, 8]}


def fit(classifier: L.LightningModule, *callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    source = SyntheticGarments(num_train=60, num_test=10)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(classifier, FashionMNISTDataModule(source, batch_size=20, val_size=20))
    return trainer


class RecordingClassifier(CNNClassifier):  # type: ignore[misc]
    """Records the calls of two of its hooks."""

    def __init__(self, called: list[str]) -> None:
        super().__init__(network=TINY)
        self.called = called

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.called.append("classifier: zero_grad")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.training:
            self.called.append("classifier: batch on the device")
        return batch


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
@pytest.mark.parametrize("tricks", [(), *((name,) for name in TRICKS), tuple(TRICKS)])
def test_every_overridden_hook_is_called(tricks: tuple[str, ...]) -> None:
    called: list[str] = []
    classifier = RecordingClassifier(called)
    callback = LambdaCallback(
        on_after_backward=lambda *_: called.append("callback: after backward"),
        on_train_batch_end=lambda *_: called.append("callback: batch end"),
    )
    step = [
        "classifier: batch on the device",
        "classifier: zero_grad",
        "callback: after backward",
        "callback: batch end",
    ]
    for _ in range(2):  # the first fit leaves nothing behind for the second
        called.clear()
        fit(classifier, LightningInternals(tricks), callback)
        assert called == 2 * step
        for hook in STEP_HOOKS:
            assert callable(getattr(classifier, hook))
            assert callable(getattr(callback, hook))


def test_empty_hooks_are_skipped_during_a_fit() -> None:
    class Check(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            skipped = {hook for hook in STEP_HOOKS if getattr(pl_module, hook) is None}
            assert skipped == set(STEP_HOOKS) - {"on_before_zero_grad"}

    fit(RecordingClassifier([]), LightningInternals(), Check())


def test_tricks_are_undone_after_an_error_too() -> None:
    class Fail(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ValueError("enough")

    classifier, internals = CNNClassifier(network=TINY), LightningInternals()
    with pytest.raises(ValueError, match="enough"):
        fit(classifier, internals, Fail())
    assert all(callable(getattr(classifier, hook)) for hook in STEP_HOOKS)
    assert not internals._undo
    assert "__setattr__" not in vars(CNNClassifier)


def test_lightning_has_the_private_attributes_used() -> None:
    class Check(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            assert trainer.fit_loop._restarting is False
            assert callable(type(trainer.fit_loop.epoch_loop)._broadcast_sigterm_tensor)

    fit(CNNClassifier(network=TINY), LightningInternals(), Check())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, fused=True)
    assert optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
