"""Try whether a user's own parts would resume exactly, before a run begins.

    inexact_parts(config, source)  # ["model.network"]

A part resumes exactly if a new one that loads its state goes on as it does itself. That fails for
state outside of its `state_dict`, and for draws from elsewhere than torch's default generators,
which are seeded before every step.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fashion_lit.data.sources.source import ImageSource
from fashion_lit.models.build import classifier_shapes
from fashion_lit.models.optimization import build_optimizer, samples_of, take_step
from fashion_lit.models.schedules import Schedule, build_schedule, step_schedule
from fashion_lit.parts.checks import try_augmentation
from fashion_lit.parts.kinds import build_part, named_parts, needs_no_trust, part_class

STEPS = 2  # before the state is saved, and after it
INEXACT_CALLBACK = "StochasticWeightAveraging"  # Lightning's, in mid-epoch


def inexact_parts(config: Mapping[str, Any], source: ImageSource) -> list[str]:
    """Return the settings of the user's own parts that would not resume exactly, as far as known.

    Networks of trusted modules, and the state of callbacks and loggers, are not tried.

    Args:
        config: a run's configuration, which was checked.
        source: the source of its images.
    """
    return [
        setting
        for setting, path in named_parts(config).items()
        if not resumes_exactly(setting, path, config, source)
    ]


def resumes_exactly(
    setting: str, path: str, config: Mapping[str, Any], source: ImageSource
) -> bool:
    """Return False if a part, at an import path, is known not to resume exactly."""
    if setting.startswith("callbacks."):
        parents = part_class(setting, path).__mro__
        return all(parent.__name__ != INEXACT_CALLBACK for parent in parents)
    if setting == "augment.own":
        first, *others = try_augmentation(build_part(setting, config["augment"]["own"]), source)
        return all(torch.equal(first, other) for other in others)
    is_network = setting == "model.network" and not needs_no_trust(setting, path)
    if not is_network and setting not in ("optimizer", "scheduler"):
        return True
    play = play_network if is_network else play_optimization
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        expected = play(config, source, None)
        if expected is None:
            return True
        state, results = expected
        resumed = play(config, source, state)
    return resumed is not None and all(map(torch.equal, results, resumed[1]))


def play_network(
    config: Mapping[str, Any], source: ImageSource, state: Any
) -> tuple[Any, list[Tensor]] | None:
    """Return a network's state, and what it then computes in training; None if it fails.

    Args:
        config: its configuration.
        source: the source of its images.
        state: what to begin with; None: what the first steps lead to.
    """
    size = config["data"]["image_size"] or source.image_size
    torch.default_generator.manual_seed(0)
    network = classifier_shapes(config, source).network.train()
    images = torch.rand(2, source.channels, size, size)
    try:
        if state is None:
            for _ in range(STEPS):
                network(images)
            state = copy.deepcopy(network.state_dict())
        else:
            network.load_state_dict(state)
        torch.default_generator.manual_seed(1)
        return state, [network(images).nan_to_num()]
    except Exception:
        return None


def play_optimization(
    config: Mapping[str, Any], source: ImageSource, state: Any
) -> tuple[Any, list[Tensor]] | None:
    """Return the state of optimizer and schedule, and the weights after more steps.

    The arguments are those of `play_network`, and so is None.
    """
    weights = samples_of(classifier_shapes(config, source).network)
    try:
        optimizer = build_optimizer(weights, config["optimizer"])
        schedule = build_schedule(optimizer, 1000, 10, config["scheduler"])
        parts: list[Any] = [weights, optimizer, *([schedule["scheduler"]] if schedule else [])]
        if state is None:
            take_steps(weights, optimizer, schedule, range(STEPS))
            state = copy.deepcopy([part.state_dict() for part in parts])
        else:
            for part, saved in zip(parts, state, strict=True):
                part.load_state_dict(saved)
        take_steps(weights, optimizer, schedule, range(STEPS, 2 * STEPS))
    except Exception:
        return None
    rates = torch.tensor([group["lr"] for group in optimizer.param_groups])
    return state, [rates, *(weight.detach() for weight in weights)]


def take_steps(
    weights: nn.ParameterList, optimizer: Optimizer, schedule: Schedule, steps: range
) -> None:
    """Step an optimizer, and its schedule, if there is one; each step has its own seed."""
    for step in steps:
        torch.default_generator.manual_seed(step)
        take_step(weights, optimizer)
        if schedule:
            step_schedule(schedule)
