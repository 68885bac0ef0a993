"""TransferClassifier: an ImageNet network of torchvision with a new head, as in report A.

Pretrained weights are downloaded by torchvision or read from a file when a fit starts; rebuilding a
classifier from a checkpoint needs neither.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final
from urllib.parse import urlsplit

import torch
import torchvision
from pydantic import AfterValidator, NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from typing_extensions import override

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.errors import UserError
from fashion_lit.models.classifier import (
    PLAIN_OPTIMIZER,
    PLAIN_SCHEDULER,
    ClassWeights,
    Decay,
    ImageClassifier,
    LabelSmoothing,
    SwaStart,
)
from fashion_lit.text import nearest

# These have auxiliary outputs in training.
UNSUPPORTED = ("googlenet", "inception_v3")
BACKBONES = sorted({*torchvision.models.list_models(torchvision.models)} - {*UNSUPPORTED})
NUM_IMAGENET = 1000  # classes


def check_backbone(name: str) -> str:
    """Return the name of a backbone; raises ValueError unless it is one of BACKBONES."""
    if name not in BACKBONES:
        likely = nearest(name, BACKBONES)[:1] or ["resnet18"]
        raise ValueError(f"a classification network of torchvision, such as {likely[0]}")
    return name


Backbone = Annotated[str, AfterValidator(check_backbone)]
GreyStem = Literal["repeat", "sum"]


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


def find_stem(network: nn.Module) -> str:
    """Return the name of a torchvision network's first convolution, such as "features.0.0"."""
    return next(n for n, module in network.named_modules() if isinstance(module, nn.Conv2d))


def find_head(network: nn.Module) -> str:
    """Return the name of the layer that outputs the ImageNet classes, such as "classifier.1"."""
    modules = network.named_modules()
    return [name for name, module in modules if num_outputs(module) == NUM_IMAGENET][-1]


def num_outputs(layer: nn.Module) -> int | None:
    """Return the number of features or channels that a layer outputs; None for other modules."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


def new_head(head: nn.Module, num_classes: int) -> nn.Module:
    """Return a randomly initialised layer with the inputs of `head` and `num_classes` outputs."""
    if isinstance(head, nn.Conv2d):  # SqueezeNet ends in a convolution and a mean
        return nn.Conv2d(head.in_channels, num_classes, head.kernel_size)  # type: ignore[arg-type]
    assert isinstance(head, nn.Linear)
    return nn.Linear(head.in_features, num_classes)


def sum_over_channels(filters: Tensor) -> Tensor:
    """Sum a stem's filters (C, 3, H, W) to (C, 1, H, W): a grey image then gives equal features."""
    return filters.sum(1, keepdim=True)


def set_frozen(network: nn.Module, frozen: bool, *, except_for: Sequence[str]) -> None:
    """Freeze or unfreeze a network but for some of its layers: their gradients and their mode."""
    for parameter in network.parameters(recurse=False):  # such as a class token
        parameter.requires_grad_(not frozen)
    for name, child in network.named_children():
        inside = [place.split(".", 1)[1] for place in except_for if place.startswith(f"{name}.")]
        if inside:
            set_frozen(child, frozen, except_for=inside)
        elif name not in except_for:
            child.requires_grad_(not frozen)
            child.train(not frozen)


@final
class TransferClassifier(ImageClassifier):
    """Classify images (B, 1 or 3, H, W) float with a network of torchvision and a new last layer.

    `forward` returns logits (B, num_classes).

    Args:
        backbone: one of BACKBONES, the names of torchvision's classification networks. Most need
            images of 32 pixels or more, vision transformers of exactly 224.
        pretrained: start from ImageNet weights.
        weights: file with these weights; None: download by torchvision.
        reinit_stem: train the stem, the first convolution, from scratch, as report A does.
        grey_stem: how a grey image enters the stem, whose filters have three channels. "repeat": it
            is repeated over them. "sum": the filters are summed over them, which gives the same
            features with a third of the stem's weights; it then takes images (B, 1, H, W). Colour
            images enter it as they are.
        freeze_backbone: train only the new layers. The others are in evaluation mode, so that batch
            statistics stay and nothing is dropped.
        unfreeze_epoch: first epoch, counted from 0, in which a frozen backbone is trained; None:
            never.
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
        backbone: Backbone = "resnet18",
        pretrained: bool = True,
        weights: str | None = None,
        reinit_stem: bool = False,
        grey_stem: GreyStem = "repeat",
        freeze_backbone: bool = False,
        unfreeze_epoch: NonNegativeInt | None = None,
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
        network: Any = torchvision.models.get_model(backbone, weights=None)
        stem, head = find_stem(network), find_head(network)
        network.set_submodule(head, new_head(network.get_submodule(head), len(class_names)))
        is_summed = in_channels == 1 and grey_stem == "sum"
        if not is_summed:
            network.register_forward_pre_hook(repeat_channels)
        else:
            conv = network.get_submodule(stem)
            conv.in_channels = 1
            conv.weight = nn.Parameter(sum_over_channels(conv.weight.detach()))
        super().__init__(
            network,
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
        self.backbone = backbone
        self.pretrained = pretrained
        self.weights = weights
        self.freeze_backbone = freeze_backbone
        self.unfreeze_epoch = unfreeze_epoch
        self.stem = stem
        self.is_summed = is_summed  # the filters of the stem, over their channels
        # randomly initialised layers, which are trained even if the backbone is frozen
        self.new_layers = (head, stem) if reinit_stem else (head,)

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
        stem = f"{self.stem}.weight"
        if self.is_summed and stem in state and state[stem].ndim == 4:
            state = {**state, stem: sum_over_channels(state[stem])}
        wanted = {key for key in own if key.rpartition(".")[0] not in self.new_layers}
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
        set_frozen(self.network, frozen, except_for=self.new_layers)
