"""Load a run and predict the class probabilities of a split's images, or of others.

    run = load_run("runs/first")
    predictions = predict(run, "test")  # probabilities (N, number of classes), labels (N,)

Nothing is trained, and the run directory is not changed.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args, overload

import lightning as L
import numpy as np
import torch
from torch import Tensor

from fashion_lit.config.schema import check_recorded, source_of
from fashion_lit.config.settings import Config, network_name
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.geometry import apply_view, tta_views
from fashion_lit.errors import UserError
from fashion_lit.evaluation.curves import curves_frame
from fashion_lit.evaluation.predictions import Predictions, Split
from fashion_lit.models.build import build_classifier
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.parts.trust import trusted_plugins, trusting
from fashion_lit.runs.data_records import (
    DATA,
    DataIdentity,
    check_same_data,
    describe_data,
    identity_of,
    is_known_by_settings,
)
from fashion_lit.runs.directory import RunDirectory, run_of
from fashion_lit.runs.integrity import RECORD, check_fits, read_checkpoint
from fashion_lit.runs.resume import find_restart
from fashion_lit.training.build import build_datamodule, with_available_devices
from fashion_lit.training.device import choose_precision, resolve_accelerator, set_tf32
from fashion_lit.training.process import as_in_new_process, silence_known_messages

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run on disk, with its results and its trained classifier; `load_run` returns it.

    Each part is read at its first use and kept; `load` reads those that predictions need. All
    raise UserError for files that are damaged.

    Args:
        files: its directory.
        checkpoint: as for `load_run`.
        plugins: as for `load_run`.

    Attributes:
        directory: its absolute path.
        config: its settings, nested plain dicts.
    """

    def __init__(
        self, files: RunDirectory, checkpoint: str | None = None, plugins: Sequence[str] = ()
    ) -> None:
        self.files = files
        self.directory = files.path.absolute()
        self.config = files.config
        self._wanted = checkpoint
        self._plugins = [*plugins, *trusted_plugins()]
        with trusting(self._plugins):
            check_recorded(self.config, files.config_file)

    def __repr__(self) -> str:
        return f"<Run {self.directory}>"

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.name

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

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The results, {"val/accuracy": 0.94, …}, as in metrics.json; {} of an unfinished run."""
        return self.files.metrics if self.files.status.get("state") == "finished" else {}

    @cached_property
    def curves(self) -> "pd.DataFrame":
        """All that was logged for TensorBoard: a column for each tag, a row for each step.

        `run.curves["val/accuracy"].dropna()` is one curve. The test's tags are "test/…".
        """
        return curves_frame(self.directory)

    @property
    def checkpoint(self) -> Path:
        """The file of the classifier's weights."""
        return self._choice[0]

    @cached_property
    def _choice(self) -> tuple[Path, str]:
        with trusting(self._plugins):
            return choose_checkpoint(self.files, self.config, self._wanted)

    @cached_property
    def _loaded(self) -> tuple[ImageClassifier, Mapping[str, Any]]:
        """The classifier and what the run recorded in its checkpoint."""
        path = self.checkpoint
        saved = read_checkpoint(path)
        record = saved[RECORD]
        if record["config"]["model"] != self.config["model"]:
            raise UserError(
                f"Expected a checkpoint of the run's model, {self.architecture}, but {path} has "
                f"{network_name(record['config'])} or other model settings."
            )
        # Weights are drawn before they are replaced.
        with as_in_new_process(), trusting(self._plugins):
            source = source_of(self.config)
            classifier = build_classifier(self.config, source.class_names, source.channels)
        check_fits(saved, classifier, path)
        classifier.load_state_dict(saved["state_dict"])
        return classifier.eval(), record

    @property
    def classifier(self) -> ImageClassifier:
        """The classifier with the checkpoint's weights, in eval mode, on the CPU."""
        return self._loaded[0]

    @property
    def record(self) -> Mapping[str, Any]:
        """What the run recorded in the checkpoint."""
        return self._loaded[1]

    @cached_property
    def datamodule(self) -> FashionMNISTDataModule:
        """The run's data module, set up, with its images in main memory.

        Raises UserError for other images than those that the run was trained on.
        """
        data = self.config["data"] | {"device": "cpu"}
        with trusting(self._plugins):
            datamodule = build_datamodule(self.config | {"data": data})
        datamodule.prepare_data()
        datamodule.setup()
        recorded = self.record.get(DATA)
        if recorded is not None and not is_known_by_settings(self.config):
            remedy = "restore those it was trained on"
            owner = f"the run in {self.files.path}"
            check_same_data(recorded, describe_data(datamodule), owner, remedy)
        return datamodule

    @cached_property
    def _device(self) -> tuple[str, str]:
        available, notice = with_available_devices(self.config)
        return resolve_accelerator(available["trainer"].get("accelerator", "auto")), notice

    @property
    def accelerator(self) -> str:
        """The device to predict on, "cuda", "mps" or "cpu"."""
        return self._device[0]

    @property
    def notice(self) -> str:
        """A remark on the checkpoint or the device for the user, or ""."""
        return " ".join(filter(None, (self._choice[1], self._device[1])))

    def load(self) -> Self:
        """Read what predictions need, classifier and images, and return the run."""
        _ = self.classifier, self.datamodule, self.accelerator
        return self


def load_run(
    directory: str | Path,
    checkpoint: str | Path | None = None,
    *,
    plugins: Sequence[str] = (),
) -> Run:
    """Return a run from its directory; raises UserError if there is none.

    Args:
        directory: the run's directory, or a checkpoint in it, whose weights are then used.
        checkpoint: "best", "last" or a file; None selects the best checkpoint of a finished run
            and the newest valid one of an unfinished run.
        plugins: packages that you trust: the run's own classes may be imported from them.
    """
    path = Path(directory).expanduser()
    if path.is_file() and path.suffix == ".ckpt":
        if checkpoint is not None:
            raise UserError(
                f"Expected one checkpoint, but got {path} and {checkpoint}; leave out one of them."
            )
        checkpoint = path
    return Run(run_of(path), None if checkpoint is None else str(checkpoint), plugins)


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


@overload
def predict(run: Run, images: Split = "val", *, augmented: bool = False) -> Predictions: ...


@overload
def predict(
    run: Run, images: Tensor | np.ndarray[Any, Any], *, augmented: bool = False
) -> Tensor: ...


def predict(
    run: Run, images: Split | Tensor | np.ndarray[Any, Any] = "val", *, augmented: bool = False
) -> Predictions | Tensor:
    """Predict class probabilities, in the precision the run was trained in, on its kind of device.

    Args:
        run: what `load_run` or `train` returns.
        images: "val" or "test", a split of the run's data; or images of your own, uint8 and as
            large as those that the run was trained on: (N, H, W), or (N, 3, H, W) in colour.
        augmented: return the mean over the `tta_views` of each image (test-time augmentation).

    Returns:
        The probabilities (N, number of classes) float32, on the CPU: of a split in `Predictions`,
        with its labels and images; of other images as a tensor.
    """
    views = (
        tta_views(mirrored=bool(run.config["augment"]["flip"])) if augmented else [(False, 0, 0)]
    )
    if isinstance(images, str):
        if images not in get_args(Split):
            raise UserError(f"Expected a split, val or test, but got {images!r}.")
        pixels, labels = run.datamodule.images_of(images)
        return Predictions(probabilities(run, pixels, views), labels, pixels)
    pixels = torch.as_tensor(images).cpu()
    shape = tuple(run.datamodule.train.images.shape[1:])
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != shape:
        wanted, given = (", ".join(map(str, ("N", *sizes))) for sizes in (shape, pixels.shape[1:]))
        raise UserError(
            f"Expected images ({wanted}) uint8, from 0 to 255, like those that the run was trained "
            f"on, but got ({given}) {str(pixels.dtype).removeprefix('torch.')}."
        )
    return probabilities(run, pixels, views)


def probabilities(run: Run, images: Tensor, views: Sequence[tuple[bool, int, int]]) -> Tensor:
    """Return the mean probabilities (N, number of classes) of views of images in main memory."""
    requested = run.config["trainer"]["precision"]
    precision, _ = choose_precision(requested, run.accelerator)
    data, classifier = run.datamodule, copy.deepcopy(run.classifier)
    num_batches = max(1, -(-len(images) // data.eval_batch_size))
    total = torch.zeros(())
    with as_in_new_process(), torch.inference_mode():
        silence_known_messages()
        set_tf32(requested, run.accelerator)
        fabric = L.Fabric(accelerator=run.accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
        module = fabric.setup_module(classifier)
        for view in views:
            batches = (part.to(fabric.device) for part in images.tensor_split(num_batches))
            inputs = (data.to_input(apply_view(batch, *view)) for batch in batches)
            logits = [module(x).float().cpu() for x in inputs]
            total = total + torch.cat(logits).softmax(1)
    return total / len(views)
