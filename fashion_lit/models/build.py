"""From a configuration to the classifier that it describes."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.data.sources.source import ImageSource
from fashion_lit.errors import UserError
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.optimization import build_optimizer, check_step
from fashion_lit.models.schedules import build_schedule
from fashion_lit.models.transfer import TransferClassifier
from fashion_lit.parts.kinds import error_of_part, named_parts
from fashion_lit.parts.trust import is_import_path

CLASSIFIERS = {"cnn": CNNClassifier, "transfer": TransferClassifier}


def build_classifier(
    config: Mapping[str, Any], class_names: Sequence[str] = CLASS_NAMES, in_channels: int = 1
) -> ImageClassifier:
    """Build the classifier that `model.name` selects, with its optimizer and scheduler settings.

    Args:
        config: a run's configuration.
        class_names: names of the classes of its data.
        in_channels: channels of its images.
    """
    arguments = dict(config["model"])
    classifier = CLASSIFIERS[arguments.pop("name")]
    return classifier(
        **arguments,
        class_names=class_names,
        in_channels=in_channels,
        optimizer=config["optimizer"],
        scheduler=config["scheduler"],
    )


def check_logits(logits: Any, expected: tuple[int, int]) -> None:
    """Raise UserError unless a network's output is what a loss takes, (B, num_classes) float."""
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise UserError(
            f"Expected a network that returns logits of {expected[1]} classes, {expected} for "
            f"a batch of {expected[0]}, but it returns {found}; let its constructor take "
            "`num_classes`, or choose another model."
        )
    if not logits.is_floating_point():
        raise UserError(
            f"Expected a network that returns logits as real numbers, but they are {logits.dtype}."
        )


def classifier_shapes(config: Mapping[str, Any], source: ImageSource) -> ImageClassifier:
    """Return the classifier that a configuration describes, to compare the shapes of its weights.

    They have no values, except those of a user's own network, which may need them.

    Args:
        config: a run's configuration.
        source: the source of its images.
    """
    device = "cpu" if "model.network" in named_parts(config) else "meta"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return build_classifier(config, source.class_names, source.channels)


def check_network(config: Mapping[str, Any], source: ImageSource) -> int:
    """Return the number of weights of the network that a configuration describes.

    Raises UserError if they are too many to count, or if the network cannot train on one batch of
    the images of `source`. torch's meta device computes shapes alone and allocates nothing; a
    network that reads values, as a RegNet does for its widths, is tried on the CPU instead.
    """
    data = config["data"]
    model = json.dumps(config["model"], sort_keys=True)
    image_size = data["image_size"] or source.image_size
    shape = (min(data["batch_size"], 2), source.channels, image_size, image_size)
    return _check_network(model, shape, tuple(source.class_names))


@cache
def _check_network(
    model: str, shape: tuple[int, ...], class_names: tuple[str, ...], device: str = "meta"
) -> int:
    settings = json.loads(model)
    own = named_parts({"model": settings}).get("model.network")
    try:
        with torch.random.fork_rng(devices=[]):  # the CPU draws real weights
            return _train_one_batch(settings, shape, class_names, device)
    except (Exception, SystemExit) as error:
        if device == "meta" and (own or _reads_values(error)):
            return _check_network(model, shape, class_names, "cpu")
        if isinstance(error, UserError):
            raise
        if own and not isinstance(error, MemoryError):
            task = f"train on images {shape}"
            raise error_of_part("model.network", own, task, error) from None
        if isinstance(error, ValueError | RuntimeError | AssertionError | MemoryError):
            raise UserError(_describe(error, shape[0], shape[-1])) from None
        raise


def _train_one_batch(
    settings: Mapping[str, Any], shape: tuple[int, ...], class_names: tuple[str, ...], device: str
) -> int:
    """Build a network and pass images (B, C, H, W) through it in training mode.

    Returns its number of weights.
    """
    arguments = dict(settings)
    build = CLASSIFIERS[arguments.pop("name")]
    with torch.device(device):
        network = build(**arguments, class_names=class_names, in_channels=shape[1]).network.train()
        images = torch.zeros(shape)
        logits = network(images)
        check_logits(logits, (shape[0], len(class_names)))
        if is_import_path(arguments.get("network", {}).get("name")):
            check_logits(network.eval()(images), (shape[0], len(class_names)))
            if not logits.requires_grad:
                raise UserError(
                    f"Expected a network with weights to train, but the logits of "
                    f"{type(network).__name__} depend on none that has a gradient."
                )
    return sum(weights.numel() for weights in network.parameters())


def check_optimizer(config: Mapping[str, Any], source: ImageSource) -> None:
    """Raise UserError unless a user's own optimizer and schedule can be built, and take a step.

    The arguments are those of `check_network`; the network has passed it.
    """
    if {"optimizer", "scheduler"} & named_parts(config).keys():
        network = classifier_shapes(config, source).network
        optimizer = build_optimizer(network, config["optimizer"])
        if any("lr" not in group for group in optimizer.param_groups):
            raise UserError(
                f"Expected an optimizer with a learning rate, `lr`, in each of its groups, but "
                f"{config['optimizer']['name']} has none."
            )
        if is_import_path(config["optimizer"]["name"]):
            check_step(network, config["optimizer"])
        build_schedule(optimizer, 1000, config["trainer"]["max_epochs"], config["scheduler"])


def _reads_values(error: BaseException) -> bool:
    """Return whether the cause is the meta device, which has no values and lacks some operations.

    torch's messages name it, as "meta tensors" or "the 'Meta' backend".
    """
    return "meta" in str(error).lower()


def _describe(error: Exception, batch_size: int, image_size: int) -> str:
    """Return one sentence on why a network cannot be built or cannot train on a batch."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, MemoryError) or "Storage size" in reason:
        return (
            f"Expected a network that fits into memory, but: {reason}; lower the sizes in "
            "model.network."
        )
    if "more than 1 value per channel" in reason:
        return (
            f"Expected `data.batch_size` to be at least 2, but got {batch_size}: at "
            f"data.image_size={image_size} the network normalises vectors over the batch."
        )
    return (
        f"Expected a network for images of {image_size} x {image_size} pixels, but: {reason}; "
        "change data.image_size, or choose another model."
    )


def check_model(model: Mapping[str, Any]) -> None:
    """Raise UserError for settings of `model` that are valid individually but not together."""
    if model.get("swa_start") is not None and model.get("ema_decay") is not None:
        raise UserError(
            "Expected one average of the weights, but both model.ema_decay and model.swa_start are "
            "set; choose averaging=ema or averaging=swa."
        )
    if model.get("unfreeze_epoch") is not None and not model["freeze_backbone"]:
        raise UserError(
            "`model.unfreeze_epoch` needs a frozen backbone, but model.freeze_backbone is false; "
            "set it to true, or remove model.unfreeze_epoch."
        )
    if model.get("weights") is not None and not model["pretrained"]:
        raise UserError(
            "`model.weights` is a file of pretrained weights, but model.pretrained is false; "
            "set it to true, or remove model.weights."
        )
    if model.get("grey_stem") == "sum" and model["reinit_stem"]:
        raise UserError(
            "`model.grey_stem=sum` sums the stem's pretrained filters, but model.reinit_stem is "
            "true, which discards them; set one of the two."
        )
