"""What is known not to resume exactly, and what resumes exactly."""

import sys
from types import ModuleType

import pytest

from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check, source_of
from fashion_lit.models.resumability import inexact_parts
from fashion_lit.parts.trust import trusting

TEXT = """
import random
import numpy
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

class Net(nn.Module):
    def __init__(self, *, num_classes: int = 10):
        super().__init__()
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten()
        self.layers = nn.Sequential(*layers, nn.LazyLinear(num_classes))
        self.layers(torch.zeros(2, 1, 28, 28))
        self.register_buffer("kept", torch.zeros(()))
        self.register_buffer("lost", torch.zeros(()), persistent=False)
        self.count, self.draws = 0, torch.Generator().manual_seed(1)

    def forward(self, images):
        return self.layers(images) + self.change()

    def change(self):
        return torch.rand(())

class Kept(Net):
    def change(self):
        self.kept += 1
        return self.kept.clone()

class Lost(Net):
    def change(self):
        self.lost += 1
        return self.lost.clone()

class Counting(Net):
    def change(self):
        self.count += 1
        return self.count

class Numpys(Net):
    def change(self):
        return numpy.random.rand()

class OwnGenerator(Net):
    def change(self):
        return torch.rand((), generator=self.draws)

class Noisy(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, lr, momentum=0.9)

    def step(self, closure=None):
        loss = super().step(closure)
        for weight in self.param_groups[0]["params"]:
            weight.data += self.draw()
        return loss

    def draw(self):
        return torch.rand(())

class NoisyOtherwise(Noisy):
    def draw(self):
        return random.random()

class CountingSteps(Noisy):
    steps = 0

    def draw(self):
        self.steps += 1
        return self.steps

class Stateless(LRScheduler):
    def get_lr(self):
        return [rate / (2 + self.last_epoch) for rate in self.base_lrs]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

class Random(LRScheduler):
    def get_lr(self):
        return [rate * random.random() for rate in self.base_lrs]

class Drawing:
    def __call__(self, images, generator):
        flips = torch.rand(len(images), generator=generator) < torch.rand(())
        return torch.where(flips[:, None, None], images.flip(-1), images)

class DrawingOtherwise:
    def __call__(self, images, generator):
        return images + torch.from_numpy(numpy.random.randint(9, size=images.shape)).byte()
"""
LR = "torch.optim.lr_scheduler"
EXACT = [
    ["model.network.name=mine.Net"],
    ["model.network.name=mine.Kept"],
    ["optimizer.name=mine.Noisy"],
    ["augment.own.name=mine.Drawing"],
    ["optimizer.name=torch.optim.NAdam"],
    ["optimizer.name=torch.optim.Adafactor", "optimizer.lr=0.01"],
    ["optimizer.name=torch.optim.RAdam", f"scheduler.name={LR}.ReduceLROnPlateau"],
    [f"scheduler.name={LR}.CosineAnnealingWarmRestarts", "scheduler.T_0=3"],
    [f"scheduler.name={LR}.OneCycleLR", "scheduler.max_lr=1", "scheduler.total_steps=2"],
]
INEXACT = [
    *(["model.network", name] for name in ("Lost", "Counting", "Numpys", "OwnGenerator")),
    *(["optimizer", name] for name in ("NoisyOtherwise", "CountingSteps")),
    *(["scheduler", name] for name in ("Stateless", "Random")),
    ["augment.own", "DrawingOtherwise"],
]


def inexact(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    module = ModuleType("mine")
    exec(TEXT, module.__dict__)
    monkeypatch.setitem(sys.modules, "mine", module)
    typed = ["data=synthetic", "trainer.max_epochs=2", *overrides, "plugins=[mine]"]
    (config,) = compose_jobs(prepare_overrides(typed), multirun=False)
    with trusting(["mine"]):
        config = check(config)
        return inexact_parts(config, source_of(config))


@pytest.mark.parametrize("overrides", EXACT, ids=lambda overrides: overrides[0])
def test_parts_whose_state_and_draws_are_torchs_resume_exactly(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inexact(overrides, monkeypatch) == []


@pytest.mark.parametrize(("setting", "name"), INEXACT)
def test_parts_with_other_state_or_draws_are_told(
    setting: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inexact([f"{setting}.name=mine.{name}"], monkeypatch) == [setting]


def test_lightnings_averaging_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inexact(["callbacks=[swa,lr_monitor]"], monkeypatch) == ["callbacks.swa"]
