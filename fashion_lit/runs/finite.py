"""Check that the loss and the weights are finite, before they are saved."""

import lightning as L
import torch

from fashion_lit.errors import UserError
from fashion_lit.models.classifier import ImageClassifier


def check_finite(trainer: L.Trainer) -> None:
    """Raise NotFiniteError if this epoch's loss or a parameter is NaN or infinite.

    Waits once for the device.
    """
    classifier = trainer.lightning_module
    assert isinstance(classifier, ImageClassifier)
    sums = [classifier.train_metrics.loss_sum, *(p.detach().sum() for p in classifier.parameters())]
    if not torch.stack([torch.as_tensor(s).float() for s in sums]).isfinite().all():
        raise NotFiniteError(trainer)


class NotFiniteError(UserError):
    """The loss or the weights are NaN or infinite."""

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(
            f"Expected finite losses and weights, but got NaN or infinity by step "
            f"{trainer.global_step} (epoch {trainer.current_epoch + 1}), which was not saved. "
            "Lower optimizer.lr, set trainer.gradient_clip_val=1, or use precision=fp32."
        )
