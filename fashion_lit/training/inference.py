"""Load a trained run and predict the class probabilities of a split's images.

    model = load_run(RunDirectory(Path("runs/first")))
    predictions = predict(model, "test")  # probabilities (N, C), labels (N,)

Nothing is trained, and the run directory is not changed.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fashion_lit.config.schema import check_recorded
from fashion_lit.config.settings import Config, network_name
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.geometry import flip_horizontally, shift_pixels
from fashion_lit.errors import UserError
from fashion_lit.evaluation.predictions import Predictions, Split
from fashion_lit.models.build import build_classifier
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.data_records import (
    DATA,
    DataIdentity,
    check_same_data,
    describe_data,
    identity_of,
    is_known_by_settings,
)
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import RECORD, check_fits, read_checkpoint
from fashion_lit.runs.resume import find_restart
from fashion_lit.training.build import build_datamodule, with_available_devices
from fashion_lit.training.device import choose_precision, resolve_accelerator, set_tf32

SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # pixels down and right


@dataclass(frozen=True)
class TrainedRun:
    """A trained classifier and its data.

    Args:
        run: its directory.
        config: the run's configuration.
        checkpoint: the file of its weights.
        record: what the run recorded in this file.
        classifier: the classifier with these weights, in eval mode.
        datamodule: the run's data module, set up, with its images in main memory.
        accelerator: the device to predict on, "cuda", "mps" or "cpu".
        notice: a remark on the checkpoint or the device for the user, or "".
    """

    run: RunDirectory
    config: Config
    checkpoint: Path
    record: Mapping[str, Any]
    classifier: ImageClassifier
    datamodule: FashionMNISTDataModule
    accelerator: str
    notice: str = ""

    @property
    def name(self) -> str:
        """The run directory's name."""
        return self.run.path.absolute().name

    @property
    def data(self) -> DataIdentity:
        """The identity of its data."""
        known = is_known_by_settings(self.config)
        identity = identity_of(self.config, None if known else describe_data(self.datamodule))
        assert identity is not None
        return identity

    @property
    def architecture(self) -> str:
        """The network's name."""
        return network_name(self.config)


def load_run(run: RunDirectory, checkpoint: str | None = None) -> TrainedRun:
    """Rebuild a run's model from its directory; raises UserError if that fails.

    Args:
        run: the run's directory.
        checkpoint: "best", "last" or a file; None selects the best checkpoint of a finished run
            and the newest valid one of an unfinished run.
    """
    if not run.exists:
        raise UserError(f"Expected the directory of a run, but {run.path} has no config.yaml.")
    config = run.config
    check_recorded(config, run.config_file)
    path, notice = choose_checkpoint(run, config, checkpoint)
    saved = read_checkpoint(path)
    record = saved[RECORD]
    if record["config"]["model"] != config["model"]:
        raise UserError(
            f"Expected a checkpoint of the run's model, {network_name(config)}, but {path} has "
            f"{network_name(record['config'])} or other model settings."
        )
    in_memory = config | {"data": config["data"] | {"device": "cpu"}}
    datamodule = build_datamodule(in_memory)
    datamodule.prepare_data()
    datamodule.setup()
    recorded = record.get(DATA)
    if recorded is not None and not is_known_by_settings(config):
        remedy = "restore those it was trained on"
        check_same_data(recorded, describe_data(datamodule), f"the run in {run.path}", remedy)
    classifier = build_classifier(config, datamodule.class_names, datamodule.channels)
    check_fits(saved, classifier, path)
    classifier.load_state_dict(saved["state_dict"])
    available, device_notice = with_available_devices(config)
    accelerator = resolve_accelerator(available["trainer"].get("accelerator", "auto"))
    notice = " ".join(filter(None, (notice, device_notice)))
    classifier.eval()
    return TrainedRun(run, config, path, record, classifier, datamodule, accelerator, notice)


def choose_checkpoint(run: RunDirectory, config: Config, wanted: str | None) -> tuple[Path, str]:
    """Return the checkpoint to evaluate and a notice, or ""; raises UserError if there is none."""
    named = {"best": run.best_checkpoint, "last": run.last_checkpoint}
    if wanted is not None:
        return named.get(wanted, Path(wanted)), ""
    state = run.status.get("state")
    if state == "finished":
        return run.best_checkpoint, ""
    restart = find_restart(run, config, rename_invalid=False)
    if restart.checkpoint is None:
        raise UserError(f"Expected a checkpoint in {run.checkpoint_dir}, but there is none yet.")
    epochs, total = restart.record["epochs_done"], config["trainer"]["max_epochs"]
    name = restart.checkpoint.name
    return restart.checkpoint, f"The run is {state}; {name} has {epochs} of {total} epochs."


def choose_splits(config: Config, wanted: Split | None) -> list[Split]:
    """Return the splits to evaluate; by default a run with test=false keeps its test set closed."""
    if wanted is not None:
        return [wanted]
    if config["data"]["validate_on_test"]:
        return ["test"]
    return ["val", "test"] if config["test"] else ["val"]


@torch.inference_mode()
def predict(model: TrainedRun, split: Split, *, augmented: bool = False) -> Predictions:
    """Predict the class probabilities of a split, in the precision the run was trained in.

    With `augmented`, the probabilities are the mean over the `tta_views` of each image.
    """
    requested = model.config["trainer"]["precision"]
    precision, _ = choose_precision(requested, model.accelerator)
    set_tf32(requested, model.accelerator)
    fabric = L.Fabric(accelerator=model.accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
    classifier = fabric.setup_module(copy.deepcopy(model.classifier))
    data = model.datamodule
    images, labels = data.images_of(split)
    num_batches = -(-len(labels) // data.eval_batch_size)
    views = tta_views(model.config) if augmented else [(False, 0, 0)]
    total = torch.zeros(())
    for view in views:
        batches = (part.to(fabric.device) for part in images.tensor_split(num_batches))
        inputs = (data.to_input(apply_view(batch, *view)) for batch in batches)
        logits = [classifier(x).float().cpu() for x in inputs]
        total = total + torch.cat(logits).softmax(1)
    return Predictions(total / len(views), labels, images)


def tta_views(config: Config) -> list[tuple[bool, int, int]]:
    """Return the views for test-time augmentation, as arguments (mirrored, down, right).

    All SHIFTS, and their mirror images if training used `augment.flip`: a network that was trained
    without mirrored images becomes less accurate with them.
    """
    mirrors = (False, True) if config["augment"]["flip"] else (False,)
    return [(mirrored, down, right) for mirrored in mirrors for down, right in SHIFTS]


def apply_view(images: Tensor, mirrored: bool, down: int, right: int) -> Tensor:
    """Return images (B, H, W) or (B, 3, H, W) uint8, mirrored if asked and shifted by a pixel."""
    if (mirrored, down, right) == (False, 0, 0):
        return images
    flips, *moves = (
        torch.full((len(images),), value, device=images.device) for value in (mirrored, down, right)
    )
    return shift_pixels(flip_horizontally(images, flips), *moves, limit=1)
