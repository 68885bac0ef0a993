"""Start a new run from the weights of another alone: `init_from=RUN` or `init_from=CHECKPOINT`.

The new run takes the settings of the other one, with those typed; any of them may change, as long
as the weights fit its network.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fashion_lit.config.compose import adopt
from fashion_lit.config.groups import parse_override
from fashion_lit.config.schema import source_of as image_source_of
from fashion_lit.config.settings import LOCATION_KEYS, Config, absolute, network_name
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.errors import UserError
from fashion_lit.models.build import classifier_shapes
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.transfer import TransferClassifier, load_pretrained
from fashion_lit.parts.arguments import keyword_fields
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import RECORD, read_checkpoint

REPLACED = ("model.weights", "model.pretrained")  # other initial weights


def source_of(config: Config) -> Path | None:
    """Return the checkpoint that `init_from` names, a run's best or a file; None if it is null."""
    if config.get("init_from") is None:
        return None
    path = Path(absolute(config["init_from"]))
    return RunDirectory(path).best_checkpoint if path.is_dir() else path


def with_settings_of_source(composed: Config, overrides: Sequence[str]) -> Config:
    """Return the settings of a new run: those of the run that `init_from` names, and those typed.

    Returns `composed` if `init_from` is null. Raises UserError for other initial weights beside it,
    an unusable checkpoint, or one whose weights do not fit the network.

    Args:
        composed: configuration that the overrides give without `init_from`.
        overrides: overrides returned by `prepare_overrides`.
    """
    if not isinstance(composed.get("init_from"), str):
        return composed  # null; `check` refuses other values
    typed = {parse_override(text).key_or_group for text in overrides}
    if replaced := [key for key in REPLACED if key in typed]:
        raise UserError(f"`{replaced[0]}` has no effect beside init_from; leave out one of them.")
    source = source_of(composed)
    assert source is not None
    checkpoint = read_checkpoint(source)
    locations = {key: composed[key] for key in LOCATION_KEYS if key in composed}
    wanted = adopt(checkpoint[RECORD]["config"], overrides, composed) | locations
    return wanted | {"ckpt_path": None, "init_from": absolute(composed["init_from"])}


def check_initial_weights(config: Config) -> None:
    """Raise UserError unless the files of a new run's initial weights fit its network.

    Args:
        config: checked settings; `init_from` and `model.weights` may name files.
    """
    source, weights = source_of(config), config["model"].get("weights")
    if source is None and weights is None:
        return
    classifier = classifier_shapes(config, image_source_of(config))
    if source is not None:
        initial_weights(read_checkpoint(source), classifier, source, network_name(config))
    elif isinstance(classifier, TransferClassifier):
        with warnings.catch_warnings(action="ignore"):  # nothing is copied to the meta device
            classifier.copy_weights(load_pretrained(classifier.backbone, weights))


def initial_weights(
    checkpoint: Mapping[str, Any], classifier: ImageClassifier, source: Path, name: str
) -> dict[str, Tensor]:
    """Return the weights and buffers of a checkpoint for a network, averaged ones if it has them.

    The last layer is left out if it is for other classes. Raises UserError for weights of another
    network.

    Args:
        checkpoint: contents of the file.
        classifier: its network will hold them; may be on the meta device.
        source: the file.
        name: the network's name.
    """
    saved = checkpoint["state_dict"]
    prefix = "average." if has_average(checkpoint) else "network."
    found = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    expected = classifier.network.state_dict()
    known = checkpoint.get("hyper_parameters", {})
    same_classes = tuple(known.get("class_names", CLASS_NAMES)) == classifier.class_names
    last = [key for key in expected if not key.endswith(("_mean", "_var", "_tracked"))][-1]
    head = last.rpartition(".")[0] + "."
    if all(
        key in found and found[key].shape[1:] == tensor.shape[1:]
        for key, tensor in expected.items()
        if key.startswith(head)
    ):
        for key in [k for k in expected if k.startswith(head)]:
            if not same_classes or found[key].shape != expected[key].shape:
                del found[key], expected[key]
    wrong = [
        key
        for key in {**expected, **found}
        if key not in found or key not in expected or found[key].shape != expected[key].shape
    ]
    channels = (known.get("in_channels", 1), classifier.hparams["in_channels"])
    if wrong and channels[0] != channels[1]:
        raise UserError(
            f"Expected weights for images of {channels[1]} channel(s), as in this run's data, for "
            f"`init_from`, but {source} has those for {channels[0]}; choose another."
        )
    if wrong:
        theirs = network_name(checkpoint[RECORD]["config"])
        raise UserError(
            f"Expected weights of a {name} with these settings for `init_from`, but those of the "
            f"{theirs} in {source} are others (e.g. {min(wrong)!r}); leave out the settings of "
            "model that differ."
        )
    return found


def has_average(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint holds averaged weights, of one epoch at least."""
    saved = checkpoint["state_dict"]
    return any(key.startswith("average.") for key in saved) and bool(saved.get("num_averaged", 1))


def load_initial_weights(classifier: ImageClassifier, config: Config) -> str:
    """Copy the weights that `init_from` names into a classifier; return a notice about them."""
    source = source_of(config)
    assert source is not None
    checkpoint = read_checkpoint(source)
    weights = initial_weights(checkpoint, classifier, source, network_name(config))
    classifier.start_from(weights)
    averaged = has_average(checkpoint)
    steps = checkpoint[RECORD]["steps_done"]
    new_head = len(weights) < len(classifier.network.state_dict())
    kind = "averaged weights" if averaged else "weights"
    notice = f"starts from the {kind} after {steps:,} steps in {source}"
    if new_head:
        notice += ", with a new last layer for other classes"
    if saw_validation_images(checkpoint[RECORD]["config"]["data"], config["data"]):
        notice += (
            "\nWarning: its run trained on some of the validation images of this one, because "
            "the split of data differs, so the figures below are optimistic."
        )
    return notice


def saw_validation_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a run with the `data` settings `before` trained on images that validate now.

    With one seed, fewer validation images are some of the more. Settings alone are compared.
    """
    decisive = {*before, *now} - keyword_fields(FashionMNISTDataModule).keys()
    if before["name"] == "fashion_mnist":
        decisive -= {"root", "mirrors"}
    if any(before.get(key) != now.get(key) for key in decisive) or now["validate_on_test"]:
        return False
    return (
        before["validate_on_test"]
        or before["split_seed"] != now["split_seed"]
        or type(before["val_size"]) is not type(now["val_size"])  # a share, and a number
        or before["val_size"] < now["val_size"]
    )
