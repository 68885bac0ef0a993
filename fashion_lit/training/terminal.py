"""The output during training: a table with a line per epoch, above a progress bar."""

import sys
import time
from importlib.util import find_spec
from typing import Any

import lightning as L
from tqdm import tqdm
from typing_extensions import override

from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.checkpoints import is_best_so_far
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
