import inspect
import math

import pytest
import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LRScheduler

from fashion_lit.config.groups import CONF_DIR
from fashion_lit.models.optimization import OPTIMIZERS, SCHEDULERS, cosine_factor, cycle_at

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


def test_sgd_uses_nesterov_momentum() -> None:
    parameter = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(parameter.weight)
    optimizer = OPTIMIZERS["sgd"](parameter, lr=0.1, momentum=0.5)
    parameter(torch.ones(1, 1)).sum().backward()  # gradient 1
    optimizer.step()
    assert float(parameter.weight) == pytest.approx(-0.1 * (1 + 0.5))


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


def test_registries_name_their_functions() -> None:
    for registry in (OPTIMIZERS, SCHEDULERS):
        for name, function in registry.items():
            assert function.__name__ == name
            assert inspect.getdoc(function)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def train_a_step(module: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    (factor * module(torch.ones(3, 64)).square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_layer_may_be_unfrozen(name: str) -> None:
    modules = [two_layers(), two_layers()]
    for module, fused in zip(modules, (True, False), strict=True):
        optimizer = OPTIMIZERS[name](module, lr=0.1, fused=fused)
        module[0].requires_grad_(False)  # type: ignore[operator]
        train_a_step(module, optimizer)
        module[0].requires_grad_(True)  # type: ignore[operator]
        train_a_step(module, optimizer)
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(one, other)


def test_momenta_that_an_older_checkpoint_lacks_begin_at_zero() -> None:
    module = two_layers()
    optimizer = OPTIMIZERS["sgd"](module, lr=0.1)
    train_a_step(module, optimizer)
    state = optimizer.state_dict()
    del state["state"][0]  # the first layer was frozen
    optimizer.load_state_dict(state)
    momentum = optimizer.state[module[0].weight]["momentum_buffer"]  # type: ignore[index]
    assert torch.equal(momentum, torch.zeros(64, 64))
    train_a_step(module, optimizer)


def test_zero_momenta_do_not_change_the_result() -> None:
    modules = [two_layers(), two_layers()]
    optimizers = [OPTIMIZERS["sgd"](module, lr=0.1, weight_decay=0.01) for module in modules]
    optimizers[1].state.clear()  # torch's initial state
    for module, optimizer in zip(modules, optimizers, strict=True):
        for _ in range(3):
            train_a_step(module, optimizer)
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.equal(one, other)


def test_a_step_that_the_scaler_skips_leaves_no_momentum_behind() -> None:
    module = two_layers()
    sizes = [p.shape for p in module.parameters()]
    dirty = [torch.full(size, 1e30) for size in sizes for _ in range(20)]
    optimizer = OPTIMIZERS["sgd"](module, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = [p.detach().clone() for p in module.parameters()]
    del dirty  # the allocator reuses this memory, filled with 1e30
    optimizer.zero_grad()
    scaler.scale(float("inf") * module(torch.ones(3, 64)).mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    for state in optimizer.state.values():
        assert not state["momentum_buffer"].any()


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
