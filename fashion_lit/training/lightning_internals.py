"""All uses of Lightning's private attributes; a test of each fails when Lightning changes it.

`LightningInternals` is a callback of every fit. Two parts of it are always active: one keeps
resumed runs exact, the other avoids waiting for the device at every step. The TRICKS only make a
training step faster. Tricks are undone when the fit ends. `fashion-lit benchmark loop` measures
each trick; a trick that gains less than 2 % of a tiny model's step is dropped.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

Undo = Callable[[], None]
Trick = Callable[[L.Trainer, L.LightningModule], Undo]


STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def skip_empty_hooks(trainer: L.Trainer, classifier: L.LightningModule) -> Undo:
    """Skip the hooks of a step that are not overridden.

    At every step Lightning calls six hooks of every callback and of the classifier, if they are
    callable, each with bookkeeping for loggers and profilers.
    """
    skipped = [
        (hooked, hook)
        for hooked in (*trainer.callbacks, classifier)  # type: ignore[attr-defined]
        for hook in STEP_HOOKS
        if not is_overridden(hook, hooked)
    ]
    for hooked, hook in skipped:
        setattr(hooked, hook, None)

    def undo() -> None:
        for hooked, hook in skipped:
            delattr(hooked, hook)

    return undo


def set_hook_name_directly(trainer: L.Trainer, classifier: L.LightningModule) -> Undo:
    """Bypass nn.Module's checks when Lightning sets `_current_fx_name`, 45 times a step."""
    kind: Any = type(classifier)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super(kind, self).__setattr__(name, value)

    kind.__setattr__ = set_attribute

    def undo() -> None:
        del kind.__setattr__

    return undo


TRICKS: Mapping[str, Trick] = {
    trick.__name__: trick for trick in (skip_empty_hooks, set_hook_name_directly)
}


class LightningInternals(L.Callback):
    """Keeps resumed fits exact and makes training steps faster by changing Lightning's internals.

    Args:
        tricks: names of the TRICKS to apply.
    """

    def __init__(self, tricks: Collection[str] = tuple(TRICKS)) -> None:
        self.tricks = tuple(tricks)
        self._undo: list[Undo] = []

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._undo = [TRICKS[name](trainer, pl_module) for name in self.tricks]
        self._undo.append(skip_sigterm_broadcast(trainer))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning counts the steps of its loggers anew after some restarts.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Otherwise Lightning skips the plateau scheduler's step in a resumed epoch.
        trainer.fit_loop._restarting = False

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._undo_all()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._undo_all()

    def _undo_all(self) -> None:
        while self._undo:
            self._undo.pop()()


def skip_sigterm_broadcast(trainer: L.Trainer) -> Undo:
    """Skip Lightning's broadcast of a received SIGTERM, which makes every step wait.

    `ResumeCheckpoints` lets all ranks agree on a stop every few steps, over the CPU.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None

    def undo() -> None:
        del loop._broadcast_sigterm_tensor

    return undo


def gradient_scale(trainer: L.Trainer, optimizer: torch.optim.Optimizer) -> float:
    """Return the factor by which fp16's GradScaler scales the gradients before an optimizer step.

    A fused optimizer unscales in its own step; otherwise Lightning has already unscaled: 1.0.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return scaler.get_scale()
