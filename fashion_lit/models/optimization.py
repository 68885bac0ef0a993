"""Optimizers by name, built from plain values.

optimizer = build_optimizer(network, {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4})
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from fashion_lit.parts.kinds import build_part, error_of_part
from fashion_lit.parts.trust import is_import_path

Momentum = Annotated[float, Field(ge=0, lt=1)]


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


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": adam, "adamw": adamw, "sgd": sgd}


def build_optimizer(module: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """Build an optimizer of a module's parameters.

    Raises UserError if an import path names none or its constructor raises an error.

    Args:
        module: the module.
        settings: {"name": one of OPTIMIZERS or the import path of a class, **its arguments}. Of an
            import path, all parameters are one group.
    """
    if is_import_path(settings["name"]):
        return build_part("optimizer", settings, module.parameters())
    arguments = dict(settings)
    return OPTIMIZERS[arguments.pop("name")](module, **arguments)


def check_step(module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Raise UserError unless a user's own optimizer can take a step with dense gradients.

    Its arguments are those of `build_optimizer`; the module's own parameters do not change.
    """
    few = samples_of(module)
    with torch.random.fork_rng(devices=[]):
        optimizer = build_optimizer(few, settings)
        try:
            take_step(few, optimizer)
        except (Exception, SystemExit) as error:
            raise error_of_part("optimizer", settings["name"], "take a step", error) from error


def take_step(weights: nn.ParameterList, optimizer: Optimizer) -> None:
    """Step an optimizer with random gradients, given by a closure as Lightning does."""
    gradients = [torch.rand_like(weight) for weight in weights]

    def closure() -> Any:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        return sum((gradient.abs().sum() for gradient in gradients), torch.zeros(()))

    optimizer.step(closure)


def samples_of(module: nn.Module) -> nn.ParameterList:
    """Return parameters as a module's are, on the CPU: of each kind of layout, one of the smallest.

    A few small ones show what an optimizer does with all.
    """
    smallest: dict[tuple[int, bool], nn.Parameter] = {}
    for parameter in module.parameters():
        layout = parameter.ndim, parameter.is_contiguous()
        best = smallest.get(layout)
        if parameter.requires_grad and (best is None or parameter.numel() < best.numel()):
            smallest[layout] = parameter
    return nn.ParameterList(
        torch.full_like(parameter, 0.1, device="cpu") for parameter in smallest.values()
    )
