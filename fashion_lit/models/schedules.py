"""Learning-rate schedules by name, built from plain values.

    schedule = build_schedule(optimizer, num_steps, num_epochs, {"name": "one_cycle"})

Every schedule here peaks at the optimizer's `lr`, so values of `optimizer.lr` are comparable across
them. `num_epochs` is `num_steps` over the steps of a whole epoch, so no whole number if the
run ends within one.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from fashion_lit.errors import UserError
from fashion_lit.models.optimization import build_optimizer, samples_of
from fashion_lit.parts.kinds import build_part, error_of_part, is_plateau
from fashion_lit.parts.trust import is_import_path

Fraction = Annotated[float, Field(gt=0, lt=1)]
NumCycles = Annotated[int, Field(ge=1, le=100)]
MAX_TRIED_STEPS = 100_000
# What Lightning's configure_optimizers expects under "lr_scheduler"; None: a constant rate.
Schedule = dict[str, Any] | None


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
    0.5. Momentum, if any, cycles between 0.85 and 0.95, torch's default. Smith and Topin 2018,
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
        cycle_momentum=bool({"momentum", "betas"} & optimizer.defaults.keys()),
    )
    return {"scheduler": scheduler, "interval": "step"}


def half_cosine(progress: float, final_factor: float) -> float:
    """Return the fraction of the peak rate at a share of half a cosine that is done, 0 to 1."""
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine_factor(step: int, num_steps: int, num_warmup_steps: int, final_factor: float) -> float:
    """Return the fraction of the peak rate at `step` in 0..num_steps: warm-up, then half a cosine.

    The warm-up is linear; the cosine ends at `final_factor`.
    """
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return half_cosine(progress, final_factor)


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


def check_schedule(schedule: Mapping[str, Any], num_epochs: int, num_steps: int) -> None:
    """Raise UserError unless the settings of a schedule fit into a run of so many epochs and steps.

    `schedule` holds its name and arguments. That of a class does not depend on the run's length.
    """
    if is_import_path(schedule["name"]):
        return
    if schedule.get("warmup_epochs", 0) >= num_epochs:
        raise UserError(
            f"Expected `scheduler.warmup_epochs` to be less than trainer.max_epochs={num_epochs}, "
            f"but got {schedule['warmup_epochs']}."
        )
    if schedule.get("three_phase") and schedule["pct_start"] >= 0.5:
        raise UserError(
            "Expected `scheduler.pct_start` to be less than 0.5 with scheduler.three_phase, whose "
            f"second phase is as long as the first, but got {schedule['pct_start']}."
        )
    if "num_cycles" in schedule:
        check_cycles(num_steps, schedule["num_cycles"], schedule.get("cycle_growth", 1.0))


def check_cycles(num_steps: int, num_cycles: int, growth: float) -> None:
    """Raise UserError unless each cycle of a schedule has a step or more.

    The arguments are those of `cycle_at`.
    """
    shortest = num_steps / sum(growth**cycle for cycle in range(num_cycles))
    if shortest < 1:
        raise UserError(
            "Expected `scheduler.num_cycles` to give each cycle a step or more, but the first "
            f"of {num_cycles} cycles has {shortest:.2g} of the run's {num_steps:,}; set fewer."
        )


def cyclic(
    optimizer: Optimizer,
    num_steps: int,
    num_epochs: float,
    *,
    num_cycles: NumCycles = 2,
    div_factor: Annotated[float, Field(gt=1)] = 10.0,
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
    final_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> Schedule:
    """Lower the rate along half a cosine to `final_factor` x lr, then start again at lr.

    The rate changes every step. Each of the `num_cycles` cycles takes `cycle_growth` times as many
    steps as the one before, and the last ends with the run. SGDR, Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983
    """

    def factor(step: int) -> float:
        _, done = cycle_at(step, num_steps, num_cycles, cycle_growth)
        return half_cosine(done, final_factor)

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


SCHEDULERS: Mapping[str, Callable[..., Schedule]] = {
    "constant": constant,
    "one_cycle": one_cycle,
    "cosine": cosine,
    "cyclic": cyclic,
    "cosine_restarts": cosine_restarts,
    "step": step,
    "plateau": plateau,
}


def build_schedule(
    optimizer: Optimizer, num_steps: float, num_epochs: float, settings: Mapping[str, Any]
) -> Schedule:
    """Build a schedule for a run of so many optimizer steps and epochs.

    Raises UserError if an import path names none or its constructor raises an error.

    Args:
        optimizer: its optimizer.
        num_steps: steps of the run; infinite only for a constant rate or a class.
        num_epochs: its epochs.
        settings: {"name": one of SCHEDULERS or the import path of a class, **its arguments}. A
            class does not know the run's length; its `interval` is "epoch" or "step".
    """
    arguments = dict(settings)
    name = arguments.pop("name")
    if not is_import_path(name):
        return SCHEDULERS[name](optimizer, num_steps, num_epochs, **arguments)
    interval = arguments.pop("interval", "epoch")
    scheduler = build_part("scheduler", {"name": name, **arguments}, optimizer)
    monitor = {"monitor": "val/loss"} if is_plateau(type(scheduler)) else {}
    return {"scheduler": scheduler, "interval": interval, **monitor}


def check_schedule_length(
    network: nn.Module,
    optimizer: Mapping[str, Any],
    num_steps: float,
    num_epochs: float,
    settings: Mapping[str, Any],
) -> None:
    """Raise UserError unless a user's own schedule can be stepped as often as the run will.

    Tries a copy of it, with a copy of the optimizer, at most MAX_TRIED_STEPS times.

    Args:
        network: whose weights the run trains.
        optimizer: the settings of its optimizer.
        num_steps: as for `build_schedule`, finite.
        num_epochs: as for `build_schedule`.
        settings: as for `build_schedule`.
    """
    tried = build_optimizer(samples_of(network), optimizer)
    schedule = build_schedule(tried, num_steps, num_epochs, settings)
    assert schedule is not None
    times = math.ceil(num_steps if schedule["interval"] == "step" else num_epochs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimizer first
            for _ in range(min(times, MAX_TRIED_STEPS)):
                step_schedule(schedule)
    except (Exception, SystemExit) as error:
        task = f"take the {times:,} steps of this run"
        raise error_of_part("scheduler", settings["name"], task, error) from error


def step_schedule(schedule: dict[str, Any]) -> None:
    """Step a schedule once; one that reads the validation loss reads 0."""
    schedule["scheduler"].step(*([0.0] if "monitor" in schedule else []))
