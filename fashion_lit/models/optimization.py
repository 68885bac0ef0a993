"""Optimizers and learning-rate schedules by name, built from plain values.

    optimizer = OPTIMIZERS["adamw"](network, lr=1e-3, weight_decay=1e-4)
    schedule = SCHEDULERS["one_cycle"](optimizer, num_steps, num_epochs, pct_start=0.3)

`num_epochs` is `num_steps` over the steps of a whole epoch, so no whole number if the run ends
within one.

Every schedule peaks at the optimizer's `lr`, so values of `optimizer.lr` are comparable across
schedules.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

Fraction = Annotated[float, Field(gt=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
NumCycles = Annotated[int, Field(ge=1, le=100)]
# What Lightning's configure_optimizers expects under "lr_scheduler"; None: a constant rate.
Schedule = dict[str, Any] | None


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_norms_and_biases: bool,
    norms_and_biases_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the parameters into two groups: weights (two or more dimensions), norms and biases.

    Norms and biases learn at `norms_and_biases_lr_factor` times `lr`. They decay only with
    `decay_norms_and_biases`, and then as fast as the weights, by lr x weight_decay per step.
    """
    weights = [p for p in module.parameters() if p.ndim >= 2]
    norms_and_biases = [p for p in module.parameters() if p.ndim < 2]
    decay = weight_decay / norms_and_biases_lr_factor if decay_norms_and_biases else 0.0
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {
            "params": norms_and_biases,
            "lr": lr * norms_and_biases_lr_factor,
            "weight_decay": decay,
        },
    ]


def adam_builder(
    kind: type[Adam], *, default_weight_decay: float, description: str
) -> Callable[..., Optimizer]:
    """Return a function that builds an optimizer of the Adam family, `kind`."""

    def build(
        module: nn.Module,
        *,
        lr: PositiveFloat,
        betas: tuple[Momentum, Momentum] = (0.9, 0.999),
        weight_decay: NonNegativeFloat = default_weight_decay,
        decay_norms_and_biases: bool = True,
        fused: bool = True,
    ) -> Optimizer:
        groups = parameter_groups(
            module, lr=lr, weight_decay=weight_decay, decay_norms_and_biases=decay_norms_and_biases
        )
        return kind(groups, lr=lr, betas=betas, fused=fused)

    build.__name__, build.__doc__ = kind.__name__.lower(), description
    return build


adam = adam_builder(
    Adam,
    default_weight_decay=0.0,
    description="Adam, Kingma and Ba 2015; weight decay is an L2 penalty in the gradient.",
)
adamw = adam_builder(
    AdamW,
    default_weight_decay=0.01,
    description="AdamW, Loshchilov and Hutter 2019; weight decay acts on the weights directly.",
)


def sgd(
    module: nn.Module,
    *,
    lr: PositiveFloat,
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
    decay_norms_and_biases: bool = True,
    norms_and_biases_lr_factor: PositiveFloat = 1.0,
    fused: bool = True,
) -> Optimizer:
    """Build stochastic gradient descent with Nesterov momentum.

    A higher learning rate for norms and biases (x 64 in Keller Jordan's airbench, 2024,
    https://arxiv.org/abs/2404.00498) speeds up short runs.
    """
    groups = parameter_groups(
        module,
        lr=lr,
        weight_decay=weight_decay,
        decay_norms_and_biases=decay_norms_and_biases,
        norms_and_biases_lr_factor=norms_and_biases_lr_factor,
    )
    optimizer = SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=fused)
    fill_missing_momenta(optimizer)
    optimizer.register_load_state_dict_post_hook(fill_missing_momenta)
    return optimizer


def fill_missing_momenta(optimizer: Optimizer) -> None:
    """Initialise missing momentum buffers to zero, which does not change any result.

    torch's fused kernel requires a buffer for all parameters or for none, but a layer that has just
    been unfrozen has none. If a gradient scaler skips the first step, torch would otherwise keep
    uninitialised memory as momentum.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def constant(optimizer: Optimizer, num_steps: int, num_epochs: float) -> Schedule:
    """Keep the learning rate constant."""
    return None


def one_cycle(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    pct_start: Fraction = 0.3,
    div_factor: PositiveFloat = 25.0,
    final_div_factor: PositiveFloat = 1e4,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    three_phase: bool = False,
) -> Schedule:
    """Raise the learning rate from lr / div_factor to lr, then lower it, with torch's OneCycleLR.

    The rate changes every step. With `three_phase`, it falls back to lr / div_factor in as many
    steps as it rises, and then to its final value, as in the paper; `pct_start` must be less than
    0.5. Momentum cycles between 0.85 and 0.95, torch's default. Smith and Topin 2018,
    https://arxiv.org/abs/1708.07120
    """
    if pct_start * num_steps == 1:  # torch would divide by the zero steps of the rise
        pct_start = math.nextafter(pct_start, 0)
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=num_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        anneal_strategy=anneal_strategy,
        three_phase=three_phase,
    )
    return {"scheduler": scheduler, "interval": "step"}


def cosine_factor(step: int, num_steps: int, num_warmup_steps: int, final_factor: float) -> float:
    """Return the fraction of the peak rate at `step` in 0..num_steps: warm-up, then half a cosine.

    The warm-up is linear; the cosine ends at `final_factor`.
    """
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    warmup_epochs: NonNegativeFloat = 1.0,
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0,
) -> Schedule:
    """Warm up linearly over `warmup_epochs`, then decay along half a cosine to `final_factor` x lr.

    The rate changes every step. Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983
    """
    num_warmup_steps = round(warmup_epochs * num_steps / num_epochs)

    def factor(step: int) -> float:
        return cosine_factor(step, num_steps, num_warmup_steps, final_factor)

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def cycle_at(step: int, num_steps: int, num_cycles: int, growth: float) -> tuple[int, float]:
    """Return the cycle of a step, from 0, and the share of that cycle in [0, 1) that is done.

    `num_cycles` cycles take `num_steps`; each takes `growth` times as many as the one before.
    """
    length = num_steps / sum(growth**cycle for cycle in range(num_cycles))
    start = 0.0
    for cycle in range(num_cycles - 1):
        if step < start + length:
            return cycle, (step - start) / length
        start, length = start + length, length * growth
    return num_cycles - 1, (step - start) / length


def cyclic(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    num_cycles: NumCycles = 2,
    div_factor: Annotated[float, Field(ge=1)] = 10.0,
    peak_factor: Annotated[float, Field(gt=0, le=1)] = 1.0,
) -> Schedule:
    """Raise the rate linearly from lr / div_factor to lr and lower it again, `num_cycles` times.

    The rate changes every step. Each cycle rises `peak_factor` times as far as the one before: 1 is
    the paper's "triangular", 0.5 its "triangular2". Smith 2015, https://arxiv.org/abs/1506.01186
    """

    def factor(step: int) -> float:
        cycle, done = cycle_at(step, num_steps, num_cycles, 1.0)
        low = 1 / div_factor
        return low + (1 - low) * peak_factor**cycle * (1 - abs(2 * done - 1))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def cosine_restarts(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    num_cycles: NumCycles = 3,
    cycle_growth: Annotated[float, Field(ge=1, le=10)] = 2.0,
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0,
) -> Schedule:
    """Lower the rate along half a cosine to `final_factor` x lr, then start again at lr.

    The rate changes every step. Each of the `num_cycles` cycles takes `cycle_growth` times as many
    steps as the one before, and the last ends with the run. SGDR, Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983
    """

    def factor(step: int) -> float:
        _, done = cycle_at(step, num_steps, num_cycles, cycle_growth)
        return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * done))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def step(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    step_size: PositiveInt = 10,
    gamma: PositiveFloat = 0.1,
) -> Schedule:
    """Multiply the learning rate by `gamma` every `step_size` epochs."""
    return {"scheduler": StepLR(optimizer, step_size, gamma), "interval": "epoch"}


def plateau(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    factor: Fraction = 0.5,
    patience: Annotated[int, Field(ge=0)] = 2,
) -> Schedule:
    """Multiply the rate by `factor` once val/loss has stagnated for over `patience` epochs."""
    scheduler = ReduceLROnPlateau(optimizer, mode="min", factor=factor, patience=patience)
    return {"scheduler": scheduler, "interval": "epoch", "monitor": "val/loss"}


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
SCHEDULERS: Mapping[str, Callable[..., Schedule]] = {
    "constant": constant,
    "one_cycle": one_cycle,
    "cosine": cosine,
    "cyclic": cyclic,
    "cosine_restarts": cosine_restarts,
    "step": step,
    "plateau": plateau,
}
