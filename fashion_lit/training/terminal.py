"""What a run prints: its start and its end, and a line per epoch above a progress bar."""

import sys
import time
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm
from typing_extensions import override

from fashion_lit.config.settings import Config
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.evaluation.tables import MAX_ROWS, classification_report
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.parts.kinds import look_up, named_parts, plugins_of
from fashion_lit.runs.checkpoints import environment, is_best_so_far
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.resume import Restart
from fashion_lit.runs.teachers import copies_in, describe_teachers
from fashion_lit.text import quote_command
from fashion_lit.training.callbacks import TrainingSpeed


def progress_bar(*, show: bool = True, **arguments: Any) -> tqdm:
    """Return a progress bar on a terminal, or in a notebook that has ipywidgets.

    Elsewhere it is hidden: a bar of text would fill a file, or a notebook's cell, with its copies.

    Args:
        show: False: hide it everywhere.
        arguments: of tqdm.
    """
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel.")
    if show and in_notebook and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar(**arguments)
    return tqdm(disable=None if show else True, **arguments)  # None: only on a terminal


class TerminalTable(L.Callback):
    """Prints one line per epoch above a progress bar of the whole run with the time left.

    Args:
        speed: measures the images per second; a callback that runs before this one.
        show_bar: draw the bar where `progress_bar` can.
    """

    HEADER = (
        "epoch    train loss   acc %    val loss   acc %          lr   seconds  images/s\n"
        "-----    ----------  ------    --------  ------    --------   -------  --------"
    )

    def __init__(self, speed: TrainingSpeed, *, show_bar: bool) -> None:
        self.speed = speed
        self.show_bar = show_bar
        self._bar: tqdm | None = None
        self._epoch_began = 0.0
        self._validated = False  # in this epoch
        self._is_best = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_began = time.perf_counter()  # resuming in mid-epoch skips on_train_epoch_start
        if not trainer.is_global_zero:
            return
        print(self.HEADER, flush=True)
        num_epochs = trainer.max_epochs or -1
        self._bar = progress_bar(
            show=self.show_bar,
            total=int(trainer.num_training_batches) * num_epochs if num_epochs > 0 else None,
            initial=trainer.global_step,
            unit="step",
            mininterval=0.5,  # seconds
            smoothing=0,  # average over the whole run, so the time left includes validation
            leave=False,
            dynamic_ncols=True,
        )

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_began = time.perf_counter()
        self._validated = self._is_best = False
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}", refresh=False)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is not None:
            self._bar.update()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated, self._is_best = True, is_best_so_far(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        train = pl_module.train_metrics.compute()  # on every rank, since it sums over ranks
        if not trainer.is_global_zero:
            return
        epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        line = f"{epoch:<7}  {train['loss']:10.4f}  {100 * train['accuracy']:6.2f}    "
        line += self._describe_validation(trainer)
        line += f"    {lr:8.2e}  {time.perf_counter() - self._epoch_began:8.1f}"
        line += f"  {self.speed.num_images / max(self.speed.seconds, 1e-9):8,.0f}"
        tqdm.write(line + ("  best" if self._is_best else ""), file=sys.stdout)
        sys.stdout.flush()

    def _describe_validation(self, trainer: L.Trainer) -> str:
        if not self._validated:
            return f"{'-':>8}  {'-':>6}"
        loss = float(trainer.callback_metrics["val/loss"])
        return f"{loss:8.4f}  {100 * float(trainer.callback_metrics['val/accuracy']):6.2f}"

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@rank_zero_only
def print_start(
    name: str,
    classifier: ImageClassifier,
    datamodule: FashionMNISTDataModule,
    trainer: L.Trainer,
    run_dir: Path,
) -> None:
    """Print the network, device, precision, seed, data and directory of a run."""
    print(f"{describe_start(name, classifier, datamodule, trainer)}\nin {run_dir}")
    if datamodule.validate_on_test:
        use = ""
        if isinstance(datamodule.source, FashionMNIST):
            use = "; use them only for comparison with course report A"
        print(
            "Warning: data.validate_on_test picks the best epoch on the test set, so the figures "
            f"below are optimistic{use}."
        )


def describe_start(
    name: str,
    classifier: ImageClassifier,
    datamodule: FashionMNISTDataModule,
    trainer: L.Trainer,
) -> str:
    """Return two lines on the network, device, precision, seed and data of a training."""
    num_parameters = sum(parameter.numel() for parameter in classifier.network.parameters())
    device = trainer.strategy.root_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if trainer.world_size > 1:
        where = f"{trainer.world_size} x {where}"
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    return (
        f"{name}, {num_parameters:,} parameters, on {where}{threads}, "
        f"{trainer.precision}, seed {datamodule.seed}\n{datamodule.description}"
    )


@rank_zero_only
def print_restart(restart: Restart, trainer: L.Trainer, initial_weights: str) -> None:
    """Print the checkpoint that the run starts from, and whether the resume is bit-identical."""
    if restart.checkpoint is None:
        if initial_weights:
            print(initial_weights)
        return
    epochs, steps = restart.record["epochs_done"], restart.record["steps_done"]
    verb = "resumes" if restart.same_run else "starts"
    print(f"{verb} after {epochs} complete epochs and {steps:,} steps, from {restart.checkpoint}")
    before, now = restart.record["environment"], environment(trainer)
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now]
    changed = [text for key, text in zip(now, changed, strict=True) if before.get(key) != now[key]]
    if changed:
        print(
            f"Changed since the checkpoint: {'; '.join(changed)}. The run resumes, but its results "
            "are not bit-identical to those of an uninterrupted run."
        )
    elif (
        trainer.strategy.root_device.type == "cuda"
        and not torch.are_deterministic_algorithms_enabled()
    ):
        print(
            "Some CUDA kernels add in a nondeterministic order, so the results only approximate "
            "those of an uninterrupted run; trainer.deterministic=true makes them identical."
        )


@rank_zero_only
def print_parts(config: Config, inexact: Collection[str]) -> None:
    """Print which parts of a run are no parts of fashion-lit, and which are `inexact`, if any."""
    for setting, path in named_parts(config).items():
        part = look_up(config, setting)
        listed = ", ".join(f"{key}={value}" for key, value in part.items() if key != "name")
        print(f"{setting}: {path}({listed})")
        if setting in inexact:
            print(
                "  does not resume exactly: it has state outside of its state_dict, or draws "
                "elsewhere than from torch's generators."
            )


@rank_zero_only
def print_teachers(run: RunDirectory, config: Config) -> None:
    """Print which teachers a run learns from; a run that is only tested has none left."""
    copies = copies_in(run, config)
    if copies and all(path.is_file() for path in copies):
        print("\n".join(describe_teachers(copies, config)))


def print_finished(run: RunDirectory) -> None:
    """Print that a run is finished, and its metrics."""
    print(f"The run in {run.path} is finished.")
    _print_metrics(run.metrics)


def _print_metrics(metrics: Mapping[str, float]) -> None:
    for name, label in (("val", "validation"), ("test", "test")):
        if f"{name}/accuracy" in metrics:
            accuracy, loss = 100 * metrics[f"{name}/accuracy"], metrics[f"{name}/loss"]
            print(f"{label:<12}accuracy {accuracy:.2f} %, loss {loss:.4f}")


@rank_zero_only
def print_early_end(classifier: ImageClassifier, trainer: L.Trainer) -> None:
    """Print that early stopping ended the training, and that no epoch was averaged, if it is so."""
    stopping = [c for c in trainer.early_stopping_callbacks if c and c.stopped_epoch]
    if stopping:
        print(
            f"\nEarly stopping ended the training after {trainer.current_epoch} epochs: "
            f"{stopping[0].patience} in a row had no better {stopping[0].monitor}."
        )
    if classifier.swa_start is not None and classifier.evaluated is classifier.network:
        print(
            f"\nNo epoch was averaged, because the training ended before epoch "
            f"{(classifier.first_swa_epoch or 0) + 1}; the trained weights are evaluated."
        )


def print_end(
    classifier: ImageClassifier, trainer: L.Trainer, run: RunDirectory, metrics: Mapping[str, float]
) -> None:
    """Print the per-class table, the run's metrics, its directory and the next commands."""
    tested = "test/accuracy" in metrics
    split = classifier.test_metrics if tested else classifier.val_metrics
    confusion = split.compute()["confusion"].cpu()
    print(f"\n{'Test' if tested else 'Validation'} images by class, best checkpoint:\n")
    print(classification_report(confusion, classifier.class_names, max_rows=MAX_ROWS))
    _print_metrics(metrics)
    print(f"{'best epoch':<12}{metrics['best_epoch']:.0f} of {trainer.current_epoch}")
    print(f"{'total time':<12}{metrics['seconds']:.1f} s")
    if "cuda/max_allocated_gib" in metrics:
        allocated, reserved = metrics["cuda/max_allocated_gib"], metrics["cuda/max_reserved_gib"]
        print(f"{'GPU memory':<12}{allocated:.2f} GiB allocated, {reserved:.2f} GiB reserved")
    plugins = plugins_of(run.config)
    flags = ["--plugins", ",".join(plugins)] if plugins else []
    print(
        f"\nThe run is in {run.path}\n"
        f"  show the curves:  {quote_command('tensorboard', '--logdir', str(run.path))}\n"
        f"  evaluate the run: {quote_command('fashion-lit', 'evaluate', str(run.path), *flags)}\n"
        f"  load the weights: {type(classifier).__name__}.load_from_checkpoint"
        f"({str(run.best_checkpoint)!r}{f', plugins={plugins}' if plugins else ''})"
    )
