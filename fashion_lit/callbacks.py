"""Callbacks and logger of every run: keyed dropout, speed, TensorBoard."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from fashion_lit.classifier import ImageClassifier
from fashion_lit.randomness import seed_default_generators

DROPOUT_STREAM = 2  # beside the data module's streams 0 and 1
EVENT_FILES = "events.out.tfevents.*"
BEST_ACCURACY = "val/best_accuracy"  # one point a run, for the HPARAMS tab to sort by
CUSTOM_SCALARS = {
    "Overview": {
        "accuracy": ["Multiline", ["train/accuracy$", "val/accuracy$"]],
        "loss": ["Multiline", ["train/loss$", "val/loss$"]],
    }
} | {
    f"{title} by class": {
        score: ["Multiline", [f"{split}/{score}/.*"]] for score in ("f1", "precision", "recall")
    }
    for title, split in (("Validation", "val"), ("Test", "test"))
}


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard events into the run directory itself, and nothing beside them.

    Args:
        run_dir: the run directory; events of the run's earlier processes may be there.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)
        self.run_dir = run_dir
        self.goes_on = any(run_dir.glob(EVENT_FILES))

    def flush(self) -> dict[str, int]:
        """Write out all events; returns the event files' names and sizes in bytes."""
        self.save()
        return {path.name: path.stat().st_size for path in self.run_dir.glob(EVENT_FILES)}

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, without the `epoch` that Lightning adds to each call."""
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)

    @override
    def save(self) -> None:
        """Flush the events; the configuration stands in config.yaml, not in a hparams.yaml."""
        self.experiment.flush()

    @override
    def finalize(self, status: str) -> None:
        """Flush the events, and go on in the same file: fit, validate and test each end so."""
        self.experiment.flush()


class KeyedDropout(L.Callback):
    """Seeds every training step by (seed, epoch, step, rank), so dropout needs no stored state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        keys = (trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_default_generators(self.seed, DROPOUT_STREAM, *keys)


class TrainingSpeed(L.Callback):
    """Logs train/images_per_second of every epoch, over all ranks, validation left out."""

    def __init__(self) -> None:
        self.num_images = 0
        self.seconds = 0.0
        self._since = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_clock()  # a run that goes on in mid-epoch starts no epoch

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_clock()

    def _start_clock(self) -> None:
        self.num_images, self.seconds, self._since = 0, 0.0, time.perf_counter()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.num_images += len(batch[1]) * trainer.world_size

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock(pl_module)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock(pl_module)
        images_per_second = self.num_images / max(self.seconds, 1e-9)
        pl_module.log("train/images_per_second", images_per_second, rank_zero_only=True)

    def _stop_clock(self, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":  # the device may be steps behind
            torch.cuda.synchronize(pl_module.device)
        self.seconds += time.perf_counter() - self._since


class TensorBoardPages(L.Callback):
    """Fills TensorBoard beyond the epoch's scalars: charts by class, HPARAMS, lr, confusions.

    Args:
        hyperparameters: what the HPARAMS tab lists of this run; numbers stay numbers.
        draw_confusion_matrix: turns counts (10, 10), true classes in rows, into a figure.
    """

    def __init__(
        self,
        hyperparameters: Mapping[str, float | str],
        draw_confusion_matrix: Callable[[Tensor], Figure],
    ) -> None:
        self.hyperparameters = dict(hyperparameters)
        self.draw_confusion_matrix = draw_confusion_matrix
        self._last_point = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(trainer.logger, RunLogger)
        self._last_point = trainer.global_step
        if not trainer.is_global_zero or trainer.logger.goes_on:
            return
        writer = _writer(trainer)
        writer.add_custom_scalars(CUSTOM_SCALARS)
        # The tab takes the names from here and the values from the scalars of these names.
        names = dict.fromkeys((BEST_ACCURACY, "val/accuracy", "val/loss", "test/accuracy"), 0.0)
        for summary in hparams(self.hyperparameters, names):
            writer._get_file_writer().add_summary(summary)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        num_steps = trainer.global_step
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        due = every > 0 and (num_steps - 1) % every == 0 and num_steps != self._last_point
        if not due or not trainer.is_global_zero:
            return
        self._last_point = num_steps  # gradient accumulation: several batches are one step
        writer = _writer(trainer)
        writer.add_scalar("train/lr", trainer.optimizers[0].param_groups[0]["lr"], num_steps)
        writer.add_scalar("train/batch_loss", outputs["loss"], num_steps)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:  # the best one
            assert isinstance(pl_module, ImageClassifier)
            totals = pl_module.val_metrics.compute()
            _writer(trainer).add_scalar(BEST_ACCURACY, totals["accuracy"], trainer.global_step)
            self._log_confusions(trainer, "val/confusion_matrix", totals["confusion"])

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, ImageClassifier)
            totals = pl_module.test_metrics.compute()
            self._log_confusions(trainer, "test/confusion_matrix", totals["confusion"])

    def _log_confusions(self, trainer: L.Trainer, tag: str, confusion: Tensor) -> None:
        figure = self.draw_confusion_matrix(confusion.cpu())
        _writer(trainer).add_figure(tag, figure, trainer.global_step, close=False)


def _writer(trainer: L.Trainer) -> Any:
    assert isinstance(trainer.logger, RunLogger)
    return trainer.logger.experiment
