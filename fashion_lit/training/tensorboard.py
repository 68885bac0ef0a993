"""TensorBoard content in addition to the epoch's scalars: charts, HPARAMS, images, norms."""

from collections.abc import Collection, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.evaluation.curves import TEST_GROUP, read_curves
from fashion_lit.evaluation.figures import class_curves_figure, pictures_figure
from fashion_lit.evaluation.tables import confusion_matrix_figure
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.checkpoints import is_best_so_far
from fashion_lit.runs.logger import RunLogger
from fashion_lit.training.lightning_internals import gradient_scale

BEST_ACCURACY = "val/best_accuracy"  # one point per run, which the HPARAMS tab sorts by
CUSTOM_SCALARS = {
    "Overview": {
        "accuracy": ["Multiline", ["train/accuracy$", "val/accuracy$"]],
        "loss": ["Multiline", ["train/loss$", "val/loss$"]],
    },
    "Validation by class": {
        score: ["Multiline", [f"val/{score}/.*"]] for score in ("f1", "precision", "recall")
    },
}


class Hyperparameters(L.Callback):
    """Writes a new run's settings for the HPARAMS tab.

    Args:
        values: settings by name; numbers are logged as numbers.
        first: the names of those that the tab shows in its first columns.
    """

    def __init__(self, values: Mapping[str, float | str], first: Collection[str]) -> None:
        self.values = dict(values)
        self.first = first

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(trainer.logger, RunLogger)
        if not trainer.is_global_zero or trainer.logger.has_earlier_events:
            return
        # The tab reads the names here and the values from the scalars with these names.
        accuracies = (BEST_ACCURACY, "val/accuracy", "val/loss", f"{TEST_GROUP}/accuracy")
        experiment, *session = hparams(self.values, dict.fromkeys(accuracies, 0.0))
        # The tab sorts settings by name, but those that are marked to differ precede the others.
        content = experiment.value[0].metadata.plugin_data
        data = plugin_data_pb2.HParamsPluginData.FromString(content.content)  # pyright: ignore[reportAttributeAccessIssue]
        for info in data.experiment.hparam_infos:
            info.differs = info.name in self.first
        content.content = data.SerializeToString()
        for summary in (experiment, *session):
            _writer(trainer).file_writer.add_summary(summary)


class TensorBoardPages(L.Callback):
    """Writes charts by class, learning rate, batch loss and the final confusion matrices."""

    def __init__(self) -> None:
        self._last_point = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(trainer.logger, RunLogger)
        self._last_point = trainer.global_step
        if not trainer.is_global_zero or trainer.logger.has_earlier_events:
            return
        _writer(trainer).add_custom_scalars(CUSTOM_SCALARS)

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
        self._last_point = num_steps  # with gradient accumulation, several batches are one step
        writer = _writer(trainer)
        writer.add_scalar("train/lr", trainer.optimizers[0].param_groups[0]["lr"], num_steps)
        loss = outputs["loss"] * trainer.accumulate_grad_batches  # undo Lightning's division
        writer.add_scalar("train/batch_loss", loss, num_steps)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After the fit, trainer.validate evaluates the best checkpoint.
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:
            assert isinstance(pl_module, ImageClassifier)
            totals = pl_module.val_metrics.compute()
            _writer(trainer).add_scalar(BEST_ACCURACY, totals["accuracy"], trainer.global_step)
            log_confusions(trainer, "val/best_confusion_matrix", totals["confusion"])

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, ImageClassifier)
            totals = pl_module.test_metrics.compute()
            log_confusions(trainer, f"{TEST_GROUP}/confusion_matrix", totals["confusion"])


class ValidationPictures(L.Callback):
    """Logs the confusion matrix and the most confident mistakes on validation images.

    Only in epochs that are the best so far: drawing takes long compared with an epoch on a GPU.
    After the last epoch also the scores of each class over all epochs, in ten colours, because
    TensorBoard's own charts have one colour for a run.
    """

    NUM_PICTURES = 18

    def __init__(self) -> None:
        self._mistakes: list[Tensor] = []  # images, labels, probabilities, most confident first

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mistakes = []

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        images, labels = batch
        probabilities = outputs["logits"].float().softmax(1)
        found = [images, labels, probabilities]
        if self._mistakes:
            found = [torch.cat(pair) for pair in zip(self._mistakes, found, strict=True)]
        images, labels, probabilities = found
        confidence, predicted = probabilities.max(1)
        wrongness = torch.where(predicted != labels, confidence, -1)
        kept = wrongness.topk(min(self.NUM_PICTURES, len(labels))).indices
        self._mistakes = [images[kept], labels[kept], probabilities[kept]]

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ImageClassifier)
        class_names = pl_module.class_names
        if trainer.state.fn == TrainerFn.VALIDATING:  # after the fit
            assert isinstance(trainer.logger, RunLogger)
            trainer.logger.save()
            figure = class_curves_figure(read_curves(trainer.logger.run_dir), class_names)
            _writer(trainer).add_figure("val/scores_by_class", figure, trainer.global_step)
        if trainer.state.fn != TrainerFn.FITTING or not is_best_so_far(trainer):
            return
        images, labels, probabilities = (part.cpu() for part in self._mistakes)
        wrong = probabilities.argmax(1) != labels
        shown = shown_images(trainer, images[wrong]), labels[wrong], probabilities[wrong]
        log_confusions(trainer, "val/confusion_matrix", pl_module.val_metrics.totals()["confusion"])
        figure = pictures_figure(*shown, class_names)
        _writer(trainer).add_figure("val/surest_mistakes", figure, trainer.global_step)


class Norms(L.Callback):
    """Logs train/weight_norm and train/gradient_norm, L2 norms over all parameters of the network.

    Args:
        every_steps: optimizer steps between two points; each point waits for the device.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step % self.every_steps or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ImageClassifier)
        weights = [p.detach() for p in pl_module.network.parameters()]
        gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        for name, tensors in (("weight", weights), ("gradient", gradients)):
            norm = torch.nn.utils.get_total_norm(tensors)
            if name == "gradient":
                norm = norm / gradient_scale(trainer, optimizer)
            _writer(trainer).add_scalar(f"train/{name}_norm", norm, trainer.global_step)


def shown_images(trainer: L.Trainer, images: Tensor) -> Tensor:
    """Return a network's inputs (B, C, H, W) as `pictures_figure` takes them.

    A grey image is stretched there, so its normalisation does not matter; colours are in [0, 1].
    """
    if images.shape[1] == 1:
        return images[:, 0]
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(data, FashionMNISTDataModule)
    if not data.normalize:
        return images
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return images * std + mean


def log_confusions(trainer: L.Trainer, tag: str, confusion: Tensor) -> None:
    """Log the confusion matrix of counts (C, C), true classes in rows."""
    classifier = trainer.lightning_module
    assert isinstance(classifier, ImageClassifier)
    figure = confusion_matrix_figure(confusion.cpu(), classifier.class_names)
    _writer(trainer).add_figure(tag, figure, trainer.global_step, close=False)


def _writer(trainer: L.Trainer) -> Any:
    assert isinstance(trainer.logger, RunLogger)
    return trainer.logger.experiment
