"""TransferClassifier: a torchvision ResNet with a new head, as in report A.

Pretrained weights are downloaded by torchvision or read from a file when a fit starts; rebuilding a
classifier from a checkpoint needs neither.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final
from urllib.parse import urlsplit

import torch
import torchvision
from pydantic import NonNegativeInt
from torch import Tensor, nn
from typing_extensions import override

from fashion_lit.data.fashion_mnist import NUM_CLASSES
from fashion_lit.errors import UserError
from fashion_lit.models.classifier import (
    PLAIN_OPTIMIZER,
    PLAIN_SCHEDULER,
    ClassWeights,
    Decay,
    ImageClassifier,
    LabelSmoothing,
)

HEAD = "fc."  # prefix of the last layer's keys in a ResNet's state dict
STEM = "conv1."


def load_pretrained(backbone: str, weights: str | None) -> dict[str, Tensor]:
    """Return the state dict of an ImageNet `backbone`, from the file `weights` or a download.

    Raises UserError if the file is not a readable state dict or the download fails.
    """
    if weights is not None:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types of exceptions for a bad file
            raise UserError(
                f"Expected `model.weights` to be a state dict that torch.save wrote, but {weights} "
                f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from None
        if not isinstance(state, dict):
            raise UserError(
                f"Expected `model.weights` to hold a state dict, but {weights} holds a "
                f"{type(state).__name__}."
            )
        return state
    entry: Any = torchvision.models.get_model_weights(backbone)["DEFAULT"]
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # no connection, or a damaged file
        file_name = Path(urlsplit(entry.url).path).name
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"The ImageNet weights {file_name} could not be downloaded ({error}); put that file "
            f"into {folder}, or give its path as model.weights=FILE, or start from scratch with "
            "model.pretrained=false."
        ) from None


def repeat_channels(network: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Expand input images (B, 1 or 3, H, W) to (B, 3, H, W) without a copy; a forward pre-hook."""
    (images,) = inputs
    return images.expand(-1, 3, -1, -1)


@final
class TransferClassifier(ImageClassifier):
    """Classify images (B, 1 or 3, H, W) float with a torchvision ResNet whose `fc` is replaced.

    `forward` returns logits (B, 10). Grey images are repeated over the three channels of the stem.

    Args:
        backbone: name of the torchvision model.
        pretrained: start from ImageNet weights.
        weights: file with these weights; None: download by torchvision.
        reinit_stem: train the stem, `conv1`, from scratch, as report A does.
        freeze_backbone: train only the new layers, and keep the backbone's batch statistics.
        unfreeze_epoch: first epoch, counted from 0, in which a frozen backbone is trained; None:
            never.
        label_smoothing: see ImageClassifier.
        class_weights: see ImageClassifier.
        ema_decay: see ImageClassifier.
        optimizer: see ImageClassifier.
        scheduler: see ImageClassifier.
    """

    def __init__(
        self,
        *,
        backbone: Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2"] = "resnet18",
        pretrained: bool = True,
        weights: str | None = None,
        reinit_stem: bool = False,
        freeze_backbone: bool = False,
        unfreeze_epoch: NonNegativeInt | None = None,
        label_smoothing: LabelSmoothing = 0.0,
        class_weights: ClassWeights = None,
        ema_decay: Decay = None,
        optimizer: Mapping[str, Any] = PLAIN_OPTIMIZER,
        scheduler: Mapping[str, Any] = PLAIN_SCHEDULER,
    ) -> None:
        network: Any = torchvision.models.get_model(backbone, weights=None)
        network.fc = nn.Linear(network.fc.in_features, NUM_CLASSES)
        network.register_forward_pre_hook(repeat_channels)
        super().__init__(
            network,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ema_decay=ema_decay,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.save_hyperparameters()
        self.backbone = backbone
        self.pretrained = pretrained
        self.weights = weights
        self.freeze_backbone = freeze_backbone
        self.unfreeze_epoch = unfreeze_epoch
        # randomly initialised layers, which are trained even if the backbone is frozen
        self.new_layers = (HEAD, STEM) if reinit_stem else (HEAD,)

    @override
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        super().start_from(weights)
        self.pretrained = False  # or the ImageNet weights would replace them

    def setup(self, stage: str) -> None:
        """Load the pretrained weights when a fit starts without a checkpoint."""
        if stage == "fit" and self.pretrained and self.trainer.ckpt_path is None:
            self.copy_weights(load_pretrained(self.backbone, self.weights))

    def copy_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` except for the new layers; raise UserError for another architecture."""
        own = self.network.state_dict()
        wanted = {key for key in own if not key.startswith(self.new_layers)}
        mismatched = [k for k in wanted if k not in state or state[k].shape != own[k].shape]
        if mismatched:
            raise UserError(
                f"Expected the weights of a {self.backbone}, but {len(mismatched)} of its "
                f"{len(wanted)} tensors are missing or differ in shape (e.g. {min(mismatched)!r}); "
                "check model.weights and model.backbone."
            )
        self.network.load_state_dict({key: state[key] for key in wanted}, strict=False)

    def on_train_start(self) -> None:
        """Freeze or unfreeze the backbone: a fit resumed in an epoch skips that epoch's start."""
        self._freeze()

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze the backbone, depending on the epoch only."""
        self._freeze()

    def _freeze(self) -> None:
        if not self.freeze_backbone:
            return
        unfreeze_epoch = self.unfreeze_epoch
        frozen = unfreeze_epoch is None or self.current_epoch < unfreeze_epoch
        for name, child in self.network.named_children():
            if not f"{name}.".startswith(self.new_layers):
                child.requires_grad_(not frozen)
                child.train(not frozen)
