"""From a configuration to the classifier that it describes."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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
    Nothing is allocated: torch's meta device computes shapes alone.
    """
    data = config["data"]
    model = json.dumps(config["model"], sort_keys=True)
    return _check_network(model, min(data["batch_size"], 2), data["image_size"])


class _ValuesOnCPU(TorchFunctionMode):
    """Keeps the values of `arange` and `tensor`, from which a RegNet computes its widths."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **device})


def _on_meta_device(build: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # it reads values
        with torch.device("meta"), _ValuesOnCPU():
            return build()


@cache
def _check_network(model: str, batch_size: int, image_size: int) -> int:
    arguments = json.loads(model)
    classifier = CLASSIFIERS[arguments.pop("name")]
    try:
        network = _on_meta_device(lambda: classifier(**arguments).network.train())
    except RuntimeError as error:
        raise UserError(
            f"Expected a network that fits into memory, but: {str(error).splitlines()[0]}; lower "
            "the sizes in model.network."
        ) from None
    try:
        network(torch.empty(batch_size, 1, image_size, image_size, device="meta"))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"Expected `data.batch_size` to be at least 2, but got {batch_size}: at "
                f"data.image_size={image_size} the network normalises vectors over the batch."
            ) from None
    except (RuntimeError, AssertionError) as error:
        # An operation that the meta device lacks says so.
        if not isinstance(error, NotImplementedError) and "meta" not in str(error):
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"Expected a network for images of {image_size} x {image_size} pixels, but: "
                f"{reason}; change data.image_size, or choose another model."
            ) from None
    return sum(weights.numel() for weights in network.parameters())
