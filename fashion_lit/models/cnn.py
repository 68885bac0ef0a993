"""CNNClassifier: a network from `fashion_lit/models/networks/`, trained from scratch."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from pydantic import PositiveFloat

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.models.classifier import (
    PLAIN_OPTIMIZER,
    PLAIN_SCHEDULER,
    ClassWeights,
    Decay,
    ImageClassifier,
    LabelSmoothing,
    SwaStart,
)
from fashion_lit.models.networks import build_network

# Arguments of networks that are no settings, because the data decides them.
SET_BY_DATA = ("in_channels", "num_classes")


@final
class CNNClassifier(ImageClassifier):
    """Classify images (B, C, H, W) float with a network of `fashion_lit/models/networks/`.

    `forward` returns logits (B, num_classes).

    Args:
        network: {"name": a file of `fashion_lit/models/networks/` or the import path of a class,
            **its class's arguments}.
        in_channels: channels of the images, 1 or 3, which the data decides.
        class_names: names of the classes, which the data decides.
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
        in_channels: int = 1,
        class_names: Sequence[str] = CLASS_NAMES,
        label_smoothing: LabelSmoothing = 0.0,
        class_weights: ClassWeights = None,
        ema_decay: Decay = None,
        swa_start: SwaStart = None,
        swa_lr_factor: PositiveFloat = 0.25,
        optimizer: Mapping[str, Any] = PLAIN_OPTIMIZER,
        scheduler: Mapping[str, Any] = PLAIN_SCHEDULER,
    ) -> None:
        super().__init__(
            build_network(network, in_channels=in_channels, num_classes=len(class_names)),
            class_names=class_names,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ema_decay=ema_decay,
            swa_start=swa_start,
            swa_lr_factor=swa_lr_factor,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.save_hyperparameters()
