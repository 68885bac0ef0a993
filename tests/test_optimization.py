import inspect
import math

import pytest
import torch
from torch import nn

from fashion_lit.optimization import OPTIMIZERS, SCHEDULERS, cosine_factor

STEPS, EPOCHS = 3760, 20  # report B's


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def learning_rates(name: str, lr: float = 0.01, **arguments: object) -> list[float]:
    """The rate of each step, or of each epoch, as the schedule itself declares."""
    optimizer = OPTIMIZERS["sgd"](network(), lr=lr)
    schedule = SCHEDULERS[name](optimizer, STEPS, EPOCHS, **arguments)
    assert schedule is not None
    rates = []
    for _ in range({"step": STEPS, "epoch": EPOCHS}[schedule["interval"]]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return rates


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_cover_every_parameter_once(name: str) -> None:
    module = network()
    optimizer = OPTIMIZERS[name](module, lr=0.1, weight_decay=0.5, decay_norms_and_biases=False)
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in module.parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.ndim >= 2 else 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_decay_everything_by_default(name: str) -> None:
    optimizer = OPTIMIZERS[name](network(), lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "step"])
def test_norms_and_biases_learn_faster_all_along_and_decay_alike(scheduler: str) -> None:
    optimizer = OPTIMIZERS["sgd"](
        network(), lr=0.1, weight_decay=0.5, norms_and_biases_lr_factor=16.0
    )
    schedule = SCHEDULERS[scheduler](optimizer, STEPS, EPOCHS)
    assert schedule is not None
    for _ in range(50):
        weights, others = optimizer.param_groups
        assert others["lr"] == pytest.approx(16 * weights["lr"])
        decays = [group["lr"] * group["weight_decay"] for group in (weights, others)]
        assert decays[1] == pytest.approx(decays[0])
        optimizer.step()
        schedule["scheduler"].step()


def test_sgd_takes_nesterovs_step() -> None:
    parameter = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(parameter.weight)
    optimizer = OPTIMIZERS["sgd"](parameter, lr=0.1, momentum=0.5)
    parameter(torch.ones(1, 1)).sum().backward()  # gradient 1
    optimizer.step()
    assert float(parameter.weight) == pytest.approx(-0.1 * (1 + 0.5))


def test_one_cycle_is_the_reports_curve() -> None:
    rates = learning_rates("one_cycle")
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == pytest.approx(0.01, rel=1e-5)
    assert rates.index(max(rates)) == pytest.approx(0.3 * STEPS, abs=1)
    # the report's log, after epochs 18 and 19: 0.000493 and 0.000124
    assert rates[18 * 188] == pytest.approx(0.000493, abs=5e-6)
    assert rates[19 * 188] == pytest.approx(0.000124, abs=5e-6)
    assert rates[-1] < 1e-7


def test_three_phases_fall_as_long_as_they_rise_then_once_more() -> None:
    rates = learning_rates("one_cycle", pct_start=0.25, div_factor=10.0, three_phase=True)
    quarter = STEPS // 4
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) == pytest.approx(0.01, rel=1e-5)
    assert rates.index(max(rates)) == pytest.approx(quarter, abs=1)
    assert rates[2 * quarter - 2] == pytest.approx(0.001, rel=1e-3)  # back, at half of the steps
    assert rates[3 * quarter] == pytest.approx(0.0005, rel=0.01)  # half a cosine's middle
    assert rates[-1] < 1e-6


def test_cosine_warms_up_then_follows_half_a_cosine() -> None:
    rates = learning_rates("cosine", warmup_epochs=2.0, final_factor=0.1)
    assert rates[0] == pytest.approx(0.01 / 377)
    assert max(rates) == rates[376] == pytest.approx(0.01)
    middle = 376 + (STEPS - 376) // 2
    assert rates[middle] == pytest.approx(0.01 * 0.55)
    assert rates[-1] == pytest.approx(0.001, rel=1e-3)


def test_cosine_factor_without_warmup_is_the_textbook_formula() -> None:
    for step in (0, 25, 50, 99):
        expected = 0.5 * (1 + math.cos(math.pi * step / 100))
        assert cosine_factor(step, 100, 0, 0.0) == pytest.approx(expected)


def test_step_divides_per_epoch() -> None:
    rates = learning_rates("step", step_size=5, gamma=0.5)
    assert rates == pytest.approx([0.01 * 0.5 ** (epoch // 5) for epoch in range(EPOCHS)])


def test_plateau_waits_for_val_loss() -> None:
    optimizer = OPTIMIZERS["sgd"](network(), lr=0.1)
    schedule = SCHEDULERS["plateau"](optimizer, STEPS, EPOCHS, factor=0.5, patience=1)
    assert schedule is not None
    assert (schedule["interval"], schedule["monitor"]) == ("epoch", "val/loss")
    for loss in (1.0, 0.9, 0.9, 0.9):
        schedule["scheduler"].step(loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_constant_needs_no_scheduler() -> None:
    assert SCHEDULERS["constant"](OPTIMIZERS["sgd"](network(), lr=0.1), STEPS, EPOCHS) is None


def test_registries_name_their_functions() -> None:
    for registry in (OPTIMIZERS, SCHEDULERS):
        for name, function in registry.items():
            assert function.__name__ == name
            assert inspect.getdoc(function)
