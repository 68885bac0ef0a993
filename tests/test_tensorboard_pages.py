"""What is drawn and logged beyond the epoch's scalars."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fashion_lit.randomness import generator
from fashion_lit.report_figures import surest_mistakes
from fashion_lit.run_directory import RunDirectory
from fashion_lit.tensorboard_pages import ValidationPictures


def test_the_surest_mistakes_of_all_batches_are_kept() -> None:
    callback = ValidationPictures(lambda c: None, lambda *a: None)  # type: ignore[arg-type, return-value]
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), is_global_zero=True)
    images = torch.rand(100, 1, 28, 28, generator=generator(0))
    labels = torch.randint(0, 10, (100,), generator=generator(1))
    logits = 3 * torch.randn(100, 10, generator=generator(2))
    callback.on_validation_start(trainer, nn.Module())  # type: ignore[arg-type]
    for part in torch.arange(100).split(7):
        batch = (images[part], labels[part])
        callback.on_validation_batch_end(trainer, nn.Module(), {"logits": logits[part]}, batch, 0)  # type: ignore[arg-type]
    expected = surest_mistakes(logits.softmax(1), labels, callback.NUM_PICTURES)
    kept = callback._surest
    assert torch.equal(kept[0], images[expected, 0])
    assert torch.equal(kept[1], labels[expected])


def test_every_epoch_is_drawn_and_norms_are_those_of_the_weights(
    finished_run: RunDirectory,
) -> None:
    events = EventAccumulator(str(finished_run.path), size_guidance={"images": 0}).Reload()
    for tag, count in (
        ("confusion_matrix", 2),
        ("surest_mistakes", 2),
        ("best_confusion_matrix", 1),
    ):
        assert len(events.Images(f"val/{tag}")) == count, tag
    norms = events.Scalars("train/weight_norm")
    assert [point.step for point in norms] == [0, 3, 6]  # of eight steps
    state = torch.load(finished_run.last_checkpoint)["state_dict"]
    network = {k: v for k, v in state.items() if k.startswith("network.")}  # and not its average
    weights = [v for k, v in network.items() if "running" not in k and "num_batches" not in k]
    squares = sum(float(w.double().square().sum()) for w in weights)
    assert norms[-1].value == pytest.approx(squares**0.5, rel=0.02)  # two steps later
    assert all(point.value > 0 for point in events.Scalars("train/gradient_norm"))
