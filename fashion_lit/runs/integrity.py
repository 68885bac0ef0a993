"""Whether a checkpoint file is exactly what was written, and whether its contents are possible.

    checkpoint = read_checkpoint(path)  # raises UserError if one bit differs

A checkpoint is a zip archive. Its own checksums cover the tensors, but not the archive's directory:
a flipped bit there can load as uninitialised memory. So a checkpoint ends with its SHA-256; see
`files.with_digest`.
"""

import math
import re
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.errors import UserError
from fashion_lit.files import has_right_digest
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.parts.trust import is_import_path
from fashion_lit.runs.data_records import DATA, find_problem_of_data

# The key of a checkpoint under which `ResumeCheckpoints` records what Lightning does not.
RECORD = "run"
HAS_DIGEST = "has_digest"  # in the record of a checkpoint that was written with one
IS_RESUMABLE = "is_resumable"  # in the record; False if a run cannot resume from it exactly
DIRECTORY_FLAG = 0x10  # in the external attributes of a zip entry


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of fashion-lit into main memory; raises UserError unless it is intact.

    Loads only tensors and plain values (`weights_only`), so a checkpoint cannot execute code. One
    that was written without a digest, by an earlier version, has its archive checked instead.
    """
    if (path / "checkpoints").is_dir():
        raise UserError(
            f"Expected a checkpoint, but {path} is a run; name one of its files, such as "
            f"{path / 'checkpoints' / 'last.ckpt'}."
        )
    if not path.is_file():
        raise UserError(f"Expected a checkpoint, but there is no file {path}.")
    data = path.read_bytes()
    is_right = has_right_digest(data)
    if is_right is False or not _is_valid_archive(path, checksums=is_right is None):
        raise UserError(
            f"Expected a checkpoint, but {path} ({len(data):,} bytes) is damaged or not one."
        )
    del data
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"Expected only tensors and plain values, but {path} contains "
            f"{_refused_object(error)}; it was not loaded, because loading it could execute code."
        ) from None
    except Exception as error:
        raise UserError(
            f"Expected a checkpoint, but {path} is damaged ({_first_line(error)})."
        ) from None
    if (problem := find_problem(checkpoint)) is not None:
        raise UserError(f"Expected a checkpoint of fashion-lit, but {path} {problem}.")
    if checkpoint[RECORD].get(HAS_DIGEST) and is_right is None:
        raise UserError(f"Expected a checkpoint, but {path} is damaged (its digest is gone).")
    if is_right is None:
        announce_missing_digest(path)
    return checkpoint


def find_problem(checkpoint: Any) -> str | None:
    """Describe what a run cannot have written into a checkpoint; None if there is nothing."""
    needed = (RECORD, "state_dict", "loops", "optimizer_states", "lr_schedulers")
    if not isinstance(checkpoint, Mapping) or any(key not in checkpoint for key in needed):
        return "was not written by it"
    try:
        record = checkpoint[RECORD]
        if DATA in record and (problem := find_problem_of_data(record[DATA])) is not None:
            return f"has no record of its data, because {problem}"
        config, epochs_done = record["config"], int(record["epochs_done"])
        max_epochs = int(config["trainer"]["max_epochs"])
        if not 0 <= epochs_done <= max_epochs or int(record["steps_done"]) < 0:
            return f"was saved after {epochs_done} of {max_epochs} epochs"
        epoch, batch = checkpoint.get("FashionMNISTDataModule", {}).get(
            "position", (epochs_done, 0)
        )
        num_batches = most_images(config["data"]) / config["data"]["batch_size"] + 1  # an epoch
        if epoch != epochs_done or not 0 <= batch <= num_batches:
            return f"was saved at batch {batch} of epoch {epoch}"
        num_schedulers = 0 if config["scheduler"]["name"] == "constant" else 1
        for key, count in (("optimizer_states", 1), ("lr_schedulers", num_schedulers)):
            may_add = key == "lr_schedulers" and config.get("callbacks")  # as Lightning's SWA does
            if len(checkpoint[key]) != count and not may_add:
                return f"has {len(checkpoint[key])} {key} instead of {count}"
        settings = {**config["model"], **{k: config[k] for k in ("optimizer", "scheduler")}}
        for key, value in checkpoint.get("hyper_parameters", {}).items():
            if key in settings and settings[key] != value:
                return f"was trained with {key}={value}, but its run has {settings[key]}"
    except (KeyError, TypeError, ValueError) as error:
        return f"has no complete record of its run ({type(error).__name__}: {error})"
    return None


def most_images(data: Mapping[str, Any]) -> float:
    """Return at least the number of training images that the settings in `data` describe."""
    if data["name"] == "fashion_mnist":
        return FashionMNIST.num_train
    return data.get("num_train", math.inf)  # that of files is not recorded


def check_fits(checkpoint: Mapping[str, Any], classifier: ImageClassifier, path: Path) -> None:
    """Raise UserError unless a checkpoint has this classifier's weights and optimizer states."""
    found, expected = checkpoint["state_dict"], classifier.state_dict()
    wrong = [
        key
        for key in {**expected, **found}
        if key not in found or key not in expected or _shape(found[key]) != _shape(expected[key])
    ]
    if wrong:
        raise UserError(
            f"Expected the weights of {type(classifier.network).__name__}, but in {path} "
            f"{len(wrong)} of {len(expected)} tensors are missing, unknown or of another shape "
            f"(e.g. {min(wrong)!r})."
        )
    num_weights = sum(1 for _ in classifier.network.parameters())
    is_own = is_import_path(classifier.optimizer["name"])
    optimizer = checkpoint["optimizer_states"][0]
    num_states = len(optimizer["state"])
    num_grouped = sum(len(group["params"]) for group in optimizer["param_groups"])
    # A weight that was frozen so far may have none, and a user's optimizer may keep fewer.
    may_lack = getattr(classifier, "freeze_backbone", False) or is_own
    too_few = num_states < num_weights and not may_lack
    if num_grouped != num_weights or num_states > num_weights or (num_states and too_few):
        raise UserError(
            f"Expected optimizer states for {num_weights} weights, but {path} has {num_states}."
        )


def _shape(value: Any) -> Any:
    """Return a tensor's shape; None for the extra state of a user's module."""
    return getattr(value, "shape", None)


@cache
def announce_missing_digest(path: Path) -> None:
    """Print, once, that a file without a digest was checked less thoroughly."""
    print(
        f"{path} has no digest (fashion-lit wrote none before November 2026), so only its "
        "archive's own checksums were checked.",
        file=sys.stderr,
    )


def _is_valid_archive(path: Path, *, checksums: bool) -> bool:
    """Return whether a file is a zip archive as torch writes it.

    That is without compression, so that it cannot unpack to more memory than it has bytes. With
    `checksums`, those of its entries have to be right, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return (not checksums or archive.testzip() is None) and all(
                entry.compress_type == zipfile.ZIP_STORED
                and entry.compress_size == entry.file_size
                and not entry.external_attr & DIRECTORY_FLAG
                for entry in archive.infolist()
            )
    except Exception:  # zipfile raises half a dozen kinds, RuntimeError and zlib.error among them
        return False


def _refused_object(error: UnpicklingError) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else "something else"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:150] or type(error).__name__
