"""From a configuration to the classifier that it describes."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from fashion_lit.errors import UserError
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.transfer import TransferClassifier

CLASSIFIERS = {"cnn": CNNClassifier, "transfer": TransferClassifier}


def build_classifier(config: Mapping[str, Any]) -> ImageClassifier:
    """Build the classifier that `model.name` selects, with its optimizer and scheduler settings."""
    arguments = dict(config["model"])
    classifier = CLASSIFIERS[arguments.pop("name")]
    return classifier(**arguments, optimizer=config["optimizer"], scheduler=config["scheduler"])


def check_network(config: Mapping[str, Any]) -> int:
    """Return the number of weights of the network that a configuration describes.

    Raises UserError if they are too many to count, or if the network cannot train on one batch.
    torch's meta device computes shapes alone and allocates nothing; a network that reads values, as
    a RegNet does for its widths, is tried on the CPU instead.
    """
    data = config["data"]
    model = json.dumps(config["model"], sort_keys=True)
    return _check_network(model, min(data["batch_size"], 2), data["image_size"])


@cache
def _check_network(model: str, batch_size: int, image_size: int, device: str = "meta") -> int:
    try:
        with torch.random.fork_rng(devices=[]):  # the CPU draws real weights
            return _train_one_batch(model, batch_size, image_size, device)
    except UserError:
        raise
    except (ValueError, RuntimeError, AssertionError, MemoryError) as error:
        if device == "meta" and _reads_values(error):
            return _check_network(model, batch_size, image_size, "cpu")
        raise UserError(_describe(error, batch_size, image_size)) from None


def _train_one_batch(model: str, batch_size: int, image_size: int, device: str) -> int:
    """Build a network and pass images through it in training mode; return its number of weights."""
    arguments = json.loads(model)
    with torch.device(device):
        network = CLASSIFIERS[arguments.pop("name")](**arguments).network.train()
        network(torch.zeros(batch_size, 1, image_size, image_size))
    return sum(weights.numel() for weights in network.parameters())


def _reads_values(error: Exception) -> bool:
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
