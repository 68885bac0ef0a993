"""What a run shows in the terminal: first lines, a line per epoch above a bar, a last screen."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm
from typing_extensions import override

from fashion_lit.callbacks import TrainingSpeed
from fashion_lit.checkpoints import is_best_so_far
from fashion_lit.classifier import ImageClassifier
from fashion_lit.datamodule import FashionMNISTDataModule
from fashion_lit.fashion_mnist import CLASS_NAMES
from fashion_lit.report import classification_report
from fashion_lit.restart_points import environment
from fashion_lit.resuming import Restart
from fashion_lit.run_directory import RunDirectory


@rank_zero_only
def print_start(
    name: str,
    classifier: ImageClassifier,
    datamodule: FashionMNISTDataModule,
    trainer: L.Trainer,
    run_dir: Path,
) -> None:
    """Print what is trained, on what, and where the run lies."""
    num_parameters = sum(parameter.numel() for parameter in classifier.network.parameters())
    device = trainer.strategy.root_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if trainer.world_size > 1:
        where = f"{trainer.world_size} x {where}"
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    print(
        f"{name}, {num_parameters:,} parameters, on {where}{threads}, "
        f"{trainer.precision}, seed {datamodule.seed}\nin {run_dir}"
    )
    if datamodule.validate_on_test:
        print(
            "Warning: data.validate_on_test picks the best epoch on the test set, so the figures "
            "below are optimistic; they serve the comparison with report A only."
        )


@rank_zero_only
def print_restart(restart: Restart, trainer: L.Trainer) -> None:
    """Say where a run goes on, and what has changed since that its exactness depends on."""
    if restart.checkpoint is None:
        return
    epochs, steps = restart.record["epochs_done"], restart.record["steps_done"]
    verb = "goes on" if restart.same_run else "starts"
    print(f"{verb} after {epochs} whole epochs and {steps:,} steps, from {restart.checkpoint}")
    before, now = restart.record["environment"], environment(trainer)
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now]
    changed = [text for key, text in zip(now, changed, strict=True) if before.get(key) != now[key]]
    if changed:
        print(
            f"Changed since: {'; '.join(changed)}. Training goes on, but its figures will not "
            "equal to the bit those of a run that was never stopped."
        )
    elif (
        trainer.strategy.root_device.type == "cuda"
        and not torch.are_deterministic_algorithms_enabled()
    ):
        print(
            "On CUDA some kernels add in no fixed order, so figures will equal those of a run that "
            "was never stopped only nearly; with trainer.deterministic=true they are the same."
        )


class TerminalTable(L.Callback):
    """Prints one line per epoch, above a bar over the whole run with the time left.

    Args:
        speed: where the images per second come from; a callback that runs before this one.
        show_bar: draw the bar, where standard error is a terminal.
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
        self._epoch_began = time.perf_counter()  # a run that goes on in mid-epoch starts no epoch
        if not trainer.is_global_zero:
            return
        print(self.HEADER, flush=True)
        num_epochs = trainer.max_epochs or -1
        self._bar = tqdm(
            total=int(trainer.num_training_batches) * num_epochs if num_epochs > 0 else None,
            initial=trainer.global_step,
            disable=None if self.show_bar else True,  # None: no bar in files and pipes
            unit="step",
            mininterval=0.5,  # seconds
            smoothing=0,  # so that the time left counts validation in
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
        train = pl_module.train_metrics.compute()  # on every rank: ranks add up their counts here
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


def print_finished(run: RunDirectory) -> None:
    """Say that a run has nothing left to do, and what came out."""
    print(f"The run in {run.path} is finished.")
    _print_figures(run.metrics)


def _print_figures(metrics: Mapping[str, float]) -> None:
    for name, label in (("val", "validation"), ("test", "test")):
        if f"{name}/accuracy" in metrics:
            accuracy, loss = 100 * metrics[f"{name}/accuracy"], metrics[f"{name}/loss"]
            print(f"{label:<12}accuracy {accuracy:.2f} %, loss {loss:.4f}")


@rank_zero_only
def print_end(
    classifier: ImageClassifier, trainer: L.Trainer, run: RunDirectory, metrics: Mapping[str, float]
) -> None:
    """Print the per-class table, the run's figures, where everything lies and what to do next."""
    tested = "test/accuracy" in metrics
    split = classifier.test_metrics if tested else classifier.val_metrics
    confusion = split.compute()["confusion"].cpu()
    print(f"\n{'Test' if tested else 'Validation'} images by class, best checkpoint:\n")
    print(classification_report(confusion, CLASS_NAMES))
    _print_figures(metrics)
    print(f"{'best epoch':<12}{metrics['best_epoch']:.0f} of {trainer.current_epoch}")
    print(f"{'total time':<12}{metrics['seconds']:.1f} s")
    if "cuda/max_allocated_gib" in metrics:
        allocated, reserved = metrics["cuda/max_allocated_gib"], metrics["cuda/max_reserved_gib"]
        print(f"{'GPU memory':<12}{allocated:.2f} GiB allocated, {reserved:.2f} GiB reserved")
    print(
        f"\nEverything lies in {run.path}\n"
        f'  see the curves:   tensorboard --logdir "{run.path}"\n'
        f'  write a report:   fashion-lit evaluate "{run.path}"\n'
        f"  use the weights:  {type(classifier).__name__}.load_from_checkpoint"
        f"({str(run.best_checkpoint)!r})"
    )


def print_sweep_end(sweep_dir: Path, runs: Sequence[RunDirectory]) -> None:
    """Print how each job of a multirun stands, the best first, and where they lie."""
    lines = []
    for run in runs:
        status = run.status if run.exists else {"state": "not begun"}
        state = str(status["state"])
        accuracy = run.metrics["val/accuracy"] if state == "finished" else -1.0
        told = f"{100 * accuracy:6.2f}" if state == "finished" else f"{'-':>6}"
        reason = f"  {status['reason']}" if status.get("reason") else ""
        lines.append((accuracy, f"{told}  {state:<11}  {run.path.name}{reason}"))
    print("\nval acc %  state        job")
    for _, line in sorted(lines, key=lambda item: -item[0]):
        print(f"   {line}")
    print(f'\nThe sweep lies in {sweep_dir}\n  compare:  tensorboard --logdir "{sweep_dir}"')
