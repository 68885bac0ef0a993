"""From a configuration to the classifier that it describes."""

from collections.abc import Mapping
from typing import Any

from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.transfer import TransferClassifier

CLASSIFIERS = {"cnn": CNNClassifier, "transfer": TransferClassifier}


def build_classifier(config: Mapping[str, Any]) -> ImageClassifier:
    """Build the classifier that `model.name` selects, with its optimizer and scheduler settings."""
    arguments = dict(config["model"])
    classifier = CLASSIFIERS[arguments.pop("name")]
    return classifier(**arguments, optimizer=config["optimizer"], scheduler=config["scheduler"])
