import inspect

import pytest
import torch
from torch import nn

from fashion_lit.models.optimization import OPTIMIZERS


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


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


def test_sgd_uses_nesterov_momentum() -> None:
    parameter = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(parameter.weight)
    optimizer = OPTIMIZERS["sgd"](parameter, lr=0.1, momentum=0.5)
    parameter(torch.ones(1, 1)).sum().backward()  # gradient 1
    optimizer.step()
    assert float(parameter.weight) == pytest.approx(-0.1 * (1 + 0.5))


def test_optimizers_have_the_names_of_their_functions() -> None:
    for name, function in OPTIMIZERS.items():
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
