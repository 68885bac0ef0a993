"""Figures and scalars logged in addition to the epoch's scalars."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.colors import TABLEAU_COLORS, to_rgb
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fashion_lit.config.compose import compose_jobs
from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES, CLASS_TAGS
from fashion_lit.evaluation.curves import TEST_GROUP, read_curves
from fashion_lit.evaluation.figures import class_curves_figure, surest_mistakes
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.logger import RunLogger
from fashion_lit.training.tensorboard import ValidationPictures, gradient_scale


def test_the_most_confident_mistakes_of_all_batches_are_kept() -> None:
    callback = ValidationPictures()
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), is_global_zero=True)
    images = torch.rand(100, 1, 28, 28, generator=generator(0))
    labels = torch.randint(0, 10, (100,), generator=generator(1))
    logits = 3 * torch.randn(100, 10, generator=generator(2))
    callback.on_validation_start(trainer, nn.Module())  # type: ignore[arg-type]
    for part in torch.arange(100).split(7):
        batch = (images[part], labels[part])
        callback.on_validation_batch_end(trainer, nn.Module(), {"logits": logits[part]}, batch, 0)  # type: ignore[arg-type]
    expected = surest_mistakes(logits.softmax(1), labels, callback.NUM_PICTURES)
    kept = callback._mistakes
    assert torch.equal(kept[0], images[expected])
    assert torch.equal(kept[1], labels[expected])


def test_epochs_that_are_the_best_so_far_are_drawn(train: Callable[..., RunDirectory]) -> None:
    run = train("trainer.max_epochs=5", "tensorboard.pictures=true", "optimizer.lr=1e-3")
    events = EventAccumulator(str(run.path), size_guidance={"images": 0}).Reload()
    accuracies = [point.value for point in events.Scalars("val/accuracy")]
    best = [i for i, value in enumerate(accuracies) if value > max(accuracies[:i], default=-1)]
    assert len(best) < 5  # otherwise the test checks nothing
    for tag in ("confusion_matrix", "surest_mistakes"):
        steps = [image.step for image in events.Images(f"val/{tag}")]
        assert steps == [4 * (epoch + 1) for epoch in best]
    assert len(events.Images("val/best_confusion_matrix")) == 1


def test_charts_of_curves_come_before_those_of_single_points(finished_run: RunDirectory) -> None:
    tags = EventAccumulator(str(finished_run.path)).Reload().Tags()
    groups = {tag.partition("/")[0] for tag in (*tags["scalars"], *tags["images"])}
    assert sorted(groups) == ["train", "val", TEST_GROUP]  # TensorBoard's order
    of_test = {tag for tag in tags["scalars"] if tag.startswith(TEST_GROUP)}
    assert of_test == {f"{TEST_GROUP}/accuracy", f"{TEST_GROUP}/loss"}
    ((step, accuracy),) = read_curves(finished_run.path)["test/accuracy"]
    assert (step, accuracy) == (8, pytest.approx(finished_run.metrics["test/accuracy"]))


def test_curves_of_earlier_versions_are_read(tmp_path: Path) -> None:
    for group in ("test", TEST_GROUP):  # a run that an earlier version began, and tested
        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_scalar(f"{group}/accuracy", 0.5, len(group))
    assert read_curves(tmp_path) == {"test/accuracy": [(4, 0.5), (len(TEST_GROUP), 0.5)]}


def test_the_scores_of_classes_are_drawn_in_ten_colours(finished_run: RunDirectory) -> None:
    events = EventAccumulator(str(finished_run.path), size_guidance={"images": 0}).Reload()
    (image,) = events.Images("val/scores_by_class")
    pixels = imread(io.BytesIO(image.encoded_image_string))[..., :3].reshape(-1, 3)
    for color in TABLEAU_COLORS.values():
        assert np.abs(pixels - to_rgb(color)).max(1).min() < 0.01, color
    curves = {tag: [(0, 0.1 * i), (1, 0.5)] for i, tag in enumerate(CLASS_TAGS)}
    figure = class_curves_figure(
        {f"val/f1/{tag}": curve for tag, curve in curves.items()}, CLASS_NAMES
    )
    drawn = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    assert {tag: list(line.get_ydata()) for tag, line in drawn.items()} == {
        tag: [value for _, value in curve] for tag, curve in curves.items()
    }


def test_settings_that_were_chosen_are_the_first_hyperparameters(
    train: Callable[..., RunDirectory],
) -> None:
    default, *_ = compose_jobs([], multirun=False)
    lr = default["optimizer"]["lr"]  # typed, but as in the default run
    run = train("augment=flip_shift", f"optimizer.lr={lr}")
    events = EventAccumulator(str(run.path)).Reload()
    summary = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = parse_experiment_plugin_data(summary)
    infos = {info.name: info.differs for info in experiment.hparam_infos}
    assert {"optimizer.lr", "augment.flip", "data.name", "trainer.max_epochs"} <= {
        name for name, differs in infos.items() if differs
    }
    others = {"augment.shift", "optimizer.momentum", "scheduler.name", "data.split_seed", "seed"}
    assert not any(infos[name] for name in others)


def test_norms_are_those_of_the_weights(finished_run: RunDirectory) -> None:
    events = EventAccumulator(str(finished_run.path)).Reload()
    norms = events.Scalars("train/weight_norm")
    assert [point.step for point in norms] == [0, 3, 6]  # of eight steps
    state = torch.load(finished_run.last_checkpoint)["state_dict"]
    # Without the averaged weights.
    network = {k: v for k, v in state.items() if k.startswith("network.")}
    weights = [v for k, v in network.items() if "running" not in k and "num_batches" not in k]
    squares = sum(float(w.double().square().sum()) for w in weights)
    assert norms[-1].value == pytest.approx(squares**0.5, rel=0.02)  # two steps later
    assert all(point.value > 0 for point in events.Scalars("train/gradient_norm"))


def test_a_batchs_loss_is_not_divided_by_accumulated_batches(
    train: Callable[..., RunDirectory],
) -> None:
    losses = []
    for more in ([], ["trainer.accumulate_grad_batches=4"]):
        run = train("trainer.log_every_n_steps=1", "optimizer.lr=1e-9", *more)
        events = EventAccumulator(str(run.path)).Reload()
        losses.append([point.value for point in events.Scalars("train/batch_loss")])
    assert losses[1] == pytest.approx(losses[0][-1:], rel=1e-3)  # the one step's last batch


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_norms_are_unscaled_under_fp16(fused: bool) -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(3 * weight.sum()).backward()
    if not fused:
        scaler.unscale_(optimizer)  # as Lightning does before calling this callback
    assert weight.grad is not None
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert weight.grad / gradient_scale(trainer, optimizer) == pytest.approx(3)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace())  # fp32, bf16
    assert gradient_scale(trainer, optimizer) == 1.0


def test_a_clock_that_is_set_back_keeps_the_order_of_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, now in enumerate((2e9, 1e9, 1.5e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        logger = RunLogger(tmp_path / "$HOME")
        logger.log_metrics({"loss": 1.0}, step)
        logger.experiment.close()
    events = EventAccumulator(str(tmp_path / "$HOME")).Reload()
    assert [point.step for point in events.Scalars("loss")] == [0, 1, 2]
