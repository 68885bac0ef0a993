"""CNNClassifier: a network from `fashion_lit/models/networks/`, trained from scratch."""

from collections.abc import Mapping
from typing import Any, final

from pydantic import PositiveFloat

from fashion_lit.models.classifier import (
    PLAIN_OPTIMIZER,
    PLAIN_SCHEDULER,
    ClassWeights,
    Decay,
    ImageClassifier,
    LabelSmoothing,
    SwaStart,
)
from fashion_lit.models.networks import network_class


@final
class CNNClassifier(ImageClassifier):
    """Classify images (B, 1, H, W) float with a network of `fashion_lit/models/networks/`.

    `forward` returns logits (B, 10).

    Args:
        network: {"name": a file of `fashion_lit/models/networks/`, **its class's arguments}.
        label_smoothing: see ImageClassifier.
        class_weights: see ImageClassifier.
        ema_decay: see ImageClassifier.
        swa_start: see ImageClassifier.
        swa_lr_factor: see ImageClassifier.
        optimizer: see ImageClassifier.
        scheduler: see ImageClassifier.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        label_smoothing: LabelSmoothing = 0.0,
        class_weights: ClassWeights = None,
        ema_decay: Decay = None,
        swa_start: SwaStart = None,
        swa_lr_factor: PositiveFloat = 0.25,
        optimizer: Mapping[str, Any] = PLAIN_OPTIMIZER,
        scheduler: Mapping[str, Any] = PLAIN_SCHEDULER,
    ) -> None:
        arguments = dict(network)
        super().__init__(
            network_class(arguments.pop("name"))(**arguments),
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ema_decay=ema_decay,
            swa_start=swa_start,
            swa_lr_factor=swa_lr_factor,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.save_hyperparameters()
