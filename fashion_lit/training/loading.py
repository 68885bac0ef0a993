"""Load a run from its directory: its results, its classifier and its data.

run = load_run("runs/first")
run.metrics["val/accuracy"]

Nothing is trained, and the run directory is not changed.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from fashion_lit.config.schema import check_recorded, source_of
from fashion_lit.config.settings import Config, network_name
from fashion_lit.data.batches import to_input
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.errors import UserError
from fashion_lit.evaluation.curves import curves_frame
from fashion_lit.models.build import build_classifier
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.parts.trust import names_of, trusted_plugins, trusting
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
from fashion_lit.text import shorten
from fashion_lit.training.build import build_datamodule, with_available_devices
from fashion_lit.training.device import resolve_accelerator
from fashion_lit.training.process import as_in_new_process

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
        data_root: as for `load_run`.

    Attributes:
        directory: its absolute path.
        config: its settings, nested plain dicts.
    """

    def __init__(
        self,
        files: RunDirectory,
        checkpoint: str | None = None,
        plugins: Sequence[str] = (),
        data_root: str | Path | None = None,
    ) -> None:
        self.files = RunDirectory(files.path.absolute())  # the working directory may change
        self.directory = self.files.path
        self.config = files.config
        if data_root is not None:
            self.config = with_data_root(self.config, Path(data_root))
        self._wanted = checkpoint
        self._plugins = [*names_of(plugins), *trusted_plugins()]
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
        with as_in_new_process(), trusting(self._plugins):  # weights are drawn, then replaced
            if recorded := record.get(DATA):
                decided = recorded["class_names"], recorded["channels"]
            else:  # by an earlier version
                source = source_of(self.config)
                decided = source.class_names, source.channels
            classifier = build_classifier(self.config, *decided)
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
        check_data_root(self.config, f"the run in {self.files.path}")
        data = self.config["data"] | {"device": "cpu"}
        with as_in_new_process(), trusting(self._plugins):
            datamodule = build_datamodule(self.config | {"data": data})
            datamodule.prepare_data()
            datamodule.setup()
        recorded = self.record.get(DATA)
        if recorded is not None and not is_known_by_settings(self.config):
            remedy = "restore those it was trained on"
            owner = f"the run in {self.files.path}"
            check_same_data(recorded, describe_data(datamodule), owner, remedy)
        return datamodule

    def to_input(self, images: Tensor) -> Tensor:
        """Convert images like the run's, uint8, to what its classifier takes, (N, C, H, W) float32.

        Does not read the run's data, if the run recorded what they are.
        """
        settings, recorded = self.config["data"], self.record.get(DATA)
        if recorded is None:
            return self.datamodule.to_input(images)
        return to_input(
            images,
            image_size=settings["image_size"] or recorded["image_size"],
            normalize=settings["normalize"],
            mean=recorded["mean"],
            std=recorded["std"],
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one of its images: (H, W), or (3, H, W) in colour."""
        recorded = self.record.get(DATA)
        if recorded is None:
            return tuple(self.datamodule.train.images.shape[1:])
        side = recorded["image_size"]
        return (3, side, side) if recorded["channels"] == 3 else (side, side)

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
    data_root: str | Path | None = None,
) -> Run:
    """Return a run from its directory; raises UserError if there is none.

    Args:
        directory: the run's directory, or a checkpoint in it, whose weights are then used.
        checkpoint: "best", "last" or a file; None selects the best checkpoint of a finished run
            and the newest valid one of an unfinished run.
        plugins: packages that you trust: the run's own classes may be imported from them.
        data_root: the folder of its data, if it was moved since; None: as recorded.
    """
    if not isinstance(directory, str | Path):
        raise UserError(f"Expected the directory of a run, but got {shorten(repr(directory))}.")
    path = Path(directory).expanduser()
    if path.is_file() and path.suffix == ".ckpt":
        if checkpoint is not None:
            raise UserError(
                f"Expected one checkpoint, but got {path} and {checkpoint}; leave out one of them."
            )
        checkpoint = path
    return Run(run_of(path), None if checkpoint is None else str(checkpoint), plugins, data_root)


def with_data_root(config: Config, folder: Path) -> Config:
    """Return a run's settings with another `data.root`; raises UserError if its data have none."""
    if "root" not in config.get("data", {}):
        raise UserError(
            f"Expected data that are read from a folder, but those of the run are "
            f"{config['data']['name']}; leave out the folder {folder}."
        )
    root = str(folder.expanduser().absolute())
    return config | {"data": config["data"] | {"root": root}}


def check_data_root(config: Config, owner: str) -> None:
    """Raise UserError if the folder of a run's data is gone, and they are nowhere else."""
    root = config["data"].get("root")
    if config["data"]["name"] in ("idx", "folder") and not Path(root).expanduser().is_dir():
        raise UserError(
            f"Expected the images of {owner} in {root}, but there is no such folder; if it was "
            "moved, name it: --data-root FOLDER (in Python data_root=FOLDER)."
        )


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
