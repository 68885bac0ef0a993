"""Base class of the classifiers: loss, metrics, optimizer and schedule around a network."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fashion_lit.data.classes import ClassWeights, class_tags
from fashion_lit.data.types import Batch
from fashion_lit.errors import UserError
from fashion_lit.evaluation.metrics import ClassificationMetrics, class_scores
from fashion_lit.files import has_right_digest
from fashion_lit.models.averaging import (
    ExponentialAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
    swa_epoch,
)
from fashion_lit.models.distillation import Distillation
from fashion_lit.models.optimization import OPTIMIZERS, build_optimizer
from fashion_lit.models.schedules import build_schedule, check_schedule_length
from fashion_lit.parts.trust import is_import_path, trusting

LabelSmoothing = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(gt=0, lt=1)] | None
SwaStart = Annotated[float, Field(ge=0, lt=1)] | None
MIXED_PRECISIONS = ("16-mixed", "bf16-mixed")
PLAIN_OPTIMIZER = {"name": "adamw", "lr": 1e-3}
PLAIN_SCHEDULER = {"name": "constant"}


class ImageClassifier(L.LightningModule):
    """Train `network`, which maps images (B, C, H, W) float to logits (B, num_classes).

    A subclass builds the network from plain values and stores them in the checkpoint as
    hyperparameters, so that `load_from_checkpoint(path)` needs no arguments and loads with
    `weights_only=True`.

    Args:
        network: network to train.
        class_names: names of the classes, in the order of the logits.
        label_smoothing: share of the target that is spread over all classes, Szegedy et al. 2016.
        class_weights: a loss weight for each class, or None for equal weights.
        ema_decay: decay per step of an exponential moving average of the weights, which is used in
            evaluation; 0.998 averages over some 500 steps. None: no such average.
        swa_start: share of the epochs before stochastic weight averaging: the later ones train at
            a constant rate, and the mean of the weights at their ends is evaluated. None: no such
            average.
        swa_lr_factor: that rate, as a share of the optimizer's `lr`.
        optimizer: see `build_optimizer`.
        scheduler: see `build_schedule`.
    """

    class_weights: Tensor | None
    num_averaged: Tensor  # (), epochs in the stochastic weight average

    def __init__(
        self,
        network: nn.Module,
        *,
        class_names: Sequence[str],
        label_smoothing: LabelSmoothing,
        class_weights: ClassWeights,
        ema_decay: Decay,
        swa_start: SwaStart,
        swa_lr_factor: PositiveFloat,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
    ) -> None:
        super().__init__()
        # channels_last makes convolutions 1.1 to 1.4 times as fast, on CPUs and GPUs
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.class_names = tuple(class_names)
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ema_decay = ema_decay
        self.swa_start = swa_start
        self.swa_lr_factor = swa_lr_factor
        is_averaged = ema_decay is not None or swa_start is not None
        self.average = copy.deepcopy(network).requires_grad_(False) if is_averaged else None
        self.first_swa_epoch: int | None = None  # from 0; known when a training begins
        if swa_start is not None:
            self.register_buffer("num_averaged", torch.tensor(0))
        self.optimizer = dict(optimizer)
        self.scheduler = dict(scheduler)
        self.distillation: Distillation | None = None  # during a training with teachers
        self.train_metrics = ClassificationMetrics(len(class_names), weights)
        self.val_metrics = ClassificationMetrics(len(class_names), weights)
        self.test_metrics = ClassificationMetrics(len(class_names), weights)

    @classmethod
    @override
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *args: Any, plugins: Sequence[str] = (), **kwargs: Any
    ) -> Self:
        """Load a classifier as Lightning does.

        Raises UserError if the file's digest is wrong, and for a network of another package than
        those in `plugins`, whose import would execute its code.
        """
        path = Path(checkpoint_path) if isinstance(checkpoint_path, str | Path) else None
        if path is not None and path.is_file() and has_right_digest(path.read_bytes()) is False:
            raise UserError(f"Expected a checkpoint, but {path} is damaged.")
        with trusting(plugins):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights and buffers, by their names in the network, into it and its average."""
        for network in (self.network, self.average):
            if network is not None:
                network.load_state_dict({**network.state_dict(), **weights})

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes), whose softmax is the class probabilities.

        In evaluation mode the averaged network computes them, if there is one; see `evaluated`.
        """
        return self.network(images) if self.training else self.evaluated(images)

    @property
    def evaluated(self) -> nn.Module:
        """The network used in evaluation mode: the averaged one, if there is one already."""
        if self.average is None or (self.swa_start is not None and not self.num_averaged):
            return self.network
        return self.average

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy () in float32, smoothed and weighted as configured.

        Args:
            logits: (B, num_classes).
            labels: classes (B,) int64 or, of mixed images, shares of classes (B, num_classes)
                float32. The weight of a mixed image is the mean of its classes' weights, so that
                shares of 0 and 1 give the loss of the class. (torch would divide by B instead.)
        """
        is_mixed = labels.ndim == 2
        weights = None if self.class_weights is None else self.class_weights.float()
        loss = F.cross_entropy(
            logits.float(),
            labels,
            weight=weights,
            label_smoothing=self.label_smoothing,
            reduction="sum" if is_mixed else "mean",
        )
        if not is_mixed:
            return loss
        return loss / (len(labels) if weights is None else (labels * weights).sum())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's mean loss (); an epoch's first batch resets the training metrics."""
        if batch_idx == 0:
            self.train_metrics.reset()
        return self._step(batch, self.train_metrics)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the validation metrics; return its {"logits": (B, num_classes)}."""
        return {"logits": self._step(batch, self.val_metrics)[1]}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self._step(batch, self.test_metrics)

    def _step(self, batch: Batch, metrics: ClassificationMetrics) -> tuple[Tensor, Tensor]:
        images, labels, *pixels = batch
        logits = self(images)
        loss = self.loss(logits, labels)
        if self.distillation is not None and pixels:
            loss = self.distillation(loss, logits, pixels[0])
        metrics.update(logits, labels, loss)
        return loss, logits

    @property
    def is_swa_epoch(self) -> bool:
        """Whether stochastic weight averaging averages the current epoch."""
        return self.first_swa_epoch is not None and self.current_epoch >= self.first_swa_epoch

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that updates the averaged network, if there is one."""
        trainer: Any = self.trainer
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
            return []
        if self.swa_start is not None:
            return [StochasticWeightAveraging()]
        return [] if self.ema_decay is None else [ExponentialAveraging(self.ema_decay)]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule, unless stochastic weight averaging has set a constant rate."""
        if not self.is_swa_epoch:
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients if a limit is set; else skip Lightning's check of the algorithm."""
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_validation_epoch_start(self) -> None:
        """Reset the validation metrics."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Reset the test metrics."""
        self.test_metrics.reset()

    def on_train_epoch_end(self) -> None:
        """Log train/loss and train/accuracy."""
        totals = self.train_metrics.compute()
        self.log_dict({f"train/{name}": totals[name] for name in ("loss", "accuracy")})

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, val/accuracy and the per-class scores."""
        self._log_evaluation("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log test/loss, test/accuracy and the per-class scores."""
        self._log_evaluation("test", self.test_metrics)

    def _log_evaluation(self, split: str, metrics: ClassificationMetrics) -> None:
        totals = metrics.compute()
        values = {f"{split}/{name}": totals[name] for name in ("loss", "accuracy")}
        scores, tags = class_scores(totals["confusion"].cpu()), class_tags(self.class_names)
        for score in ("precision", "recall", "f1"):
            for tag, value in zip(tags, getattr(scores, score).float(), strict=True):
                values[f"{split}/{score}/{tag}"] = value
        # Validating the best checkpoint after the fit must not add a point to the curves.
        self.log_dict(values, logger=self.trainer.state.fn != TrainerFn.VALIDATING)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and the schedule over the Trainer's estimated number of steps.

        Raises UserError if the schedule needs a limited run but the Trainer sets no limit.
        """
        trainer = self.trainer
        num_steps = trainer.estimated_stepping_batches
        # not max_epochs, because max_steps may end the run earlier
        num_epochs = num_steps / -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        settings = dict(self.optimizer)
        clips = trainer.gradient_clip_val and trainer.precision in MIXED_PRECISIONS
        if clips and settings["name"] in OPTIMIZERS:
            settings["fused"] = False  # Lightning cannot clip gradients if fused
        optimizer = build_optimizer(self.network, settings)
        name = self.scheduler["name"]
        if num_steps == float("inf") and (name != "constant" or self.swa_start is not None):
            part = f"scheduler={name}" if name != "constant" else "averaging=swa"
            raise UserError(
                f"Expected a limited run for {part}, but trainer.max_epochs and "
                "trainer.max_steps set no limit; set one, or use scheduler=constant."
            )
        if self.swa_start is not None:
            self.first_swa_epoch = swa_epoch(self.swa_start, num_epochs)
            for group in optimizer.param_groups:
                group["swa_lr"] = self.swa_lr_factor * group["lr"]
        if is_import_path(name):
            check_schedule_length(self.network, settings, num_steps, num_epochs, self.scheduler)
        schedule = build_schedule(optimizer, num_steps, num_epochs, self.scheduler)
        if schedule and "monitor" in schedule:  # it has a new value after validations alone
            schedule["frequency"] = trainer.check_val_every_n_epoch or 1
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[return-value]
