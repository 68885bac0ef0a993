import inspect
import math

import pytest
import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LRScheduler

from fashion_lit.config.groups import CONF_DIR
from fashion_lit.errors import UserError
from fashion_lit.models.optimization import OPTIMIZERS
from fashion_lit.models.schedules import SCHEDULERS, check_cycles, cosine_factor, cycle_at

STEPS, EPOCHS = 3760, 20  # report B's


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def learning_rates(name: str, lr: float = 0.01, **arguments: object) -> list[float]:
    """The rate of each step or epoch, depending on the schedule's interval."""
    optimizer = OPTIMIZERS["sgd"](network(), lr=lr)
    schedule = SCHEDULERS[name](optimizer, STEPS, EPOCHS, **arguments)
    assert schedule is not None
    rates = []
    for _ in range({"step": STEPS, "epoch": EPOCHS}[schedule["interval"]]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return rates


def stepped(optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> list[float]:
    """The rate of each step under one of torch's schedules."""
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "cyclic", "cosine_restarts", "step"])
def test_norms_and_biases_learn_faster_and_decay_alike(scheduler: str) -> None:
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


def test_one_cycle_matches_the_course_reports_log() -> None:
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


def test_cyclic_matches_torchs_triangular_policies() -> None:
    for peak_factor, mode in ((1.0, "triangular"), (0.5, "triangular2")):
        rates = learning_rates("cyclic", num_cycles=4, div_factor=5.0, peak_factor=peak_factor)
        optimizer = torch.optim.SGD(network().parameters(), lr=0.01)
        half = STEPS // 8
        torchs = CyclicLR(optimizer, 0.002, 0.01, half, mode=mode, cycle_momentum=False)  # type: ignore[arg-type]
        assert rates == pytest.approx(stepped(optimizer, torchs))


def test_restarts_match_torchs() -> None:
    rates = learning_rates("cosine_restarts", num_cycles=4, cycle_growth=3.0, final_factor=0.1)
    optimizer = torch.optim.SGD(network().parameters(), lr=0.01)
    assert STEPS % (1 + 3 + 9 + 27) == 0
    torchs = CosineAnnealingWarmRestarts(optimizer, STEPS // 40, T_mult=3, eta_min=0.001)
    assert rates == pytest.approx(stepped(optimizer, torchs))


@pytest.mark.parametrize("growth", [1.0, 1.5, 2.0, 10.0])
def test_cycles_of_any_growth_fill_the_run(growth: float) -> None:
    places = [cycle_at(step, 1001, 3, growth) for step in range(1001)]
    assert [cycle for cycle, _ in places] == sorted(cycle for cycle, _ in places)
    counts = [[cycle for cycle, _ in places].count(cycle) for cycle in range(3)]
    assert counts[1] == pytest.approx(growth * counts[0], abs=growth + 1)
    assert counts[2] == pytest.approx(growth * counts[1], abs=growth + 1)
    assert all(0 <= done < 1 for _, done in places)


def test_a_longer_decay_ends_at_a_higher_rate() -> None:
    chosen = yaml.safe_load((CONF_DIR / "scheduler/one_cycle_long_decay.yaml").read_text())
    del chosen["defaults"]
    long, usual = learning_rates("one_cycle", **chosen), learning_rates("one_cycle")
    assert long.index(max(long)) < usual.index(max(usual)) / 2
    assert long[-1] == pytest.approx(0.01 / 25, rel=1e-3)
    assert all(a >= b for a, b in zip(long[-STEPS // 10 :], usual[-STEPS // 10 :], strict=True))


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


@pytest.mark.parametrize(("num_steps", "pct_start"), [(4, 0.25), (2, 0.5), (3, 1 / 3), (1, 0.3)])
@pytest.mark.parametrize("three_phase", [False, True])
def test_a_rise_of_one_step_is_no_division_by_zero(
    num_steps: int, pct_start: float, three_phase: bool
) -> None:
    if three_phase and pct_start >= 0.5:
        return  # which the schema refuses
    optimizer = OPTIMIZERS["sgd"](network(), lr=0.1)
    schedule = SCHEDULERS["one_cycle"](
        optimizer, num_steps, 1, pct_start=pct_start, three_phase=three_phase
    )
    assert schedule is not None
    for _ in range(num_steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 0.1
        optimizer.step()
        schedule["scheduler"].step()


def test_each_cycle_needs_a_step() -> None:
    check_cycles(7, 3, 2.0)  # cycles of 1, 2 and 4 steps
    with pytest.raises(UserError, match=r"the first of 3 cycles has 0\.86 of the run's 6; set few"):
        check_cycles(6, 3, 2.0)


def test_schedules_have_the_names_of_their_functions() -> None:
    for name, function in SCHEDULERS.items():
        assert function.__name__ == name
        assert inspect.getdoc(function)
