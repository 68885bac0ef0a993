"""The kinds of parts that a setting may name by import path, and the settings of such a part.

named_parts({"optimizer": {"name": "torch.optim.RAdam", "lr": 1e-3}, …})
# {"optimizer": "torch.optim.RAdam"}
part_fields("optimizer", "torch.optim.RAdam")  # {"lr": (float | Tensor, 0.001), …}
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from fashion_lit.errors import UserError
from fashion_lit.parts.arguments import Fields, class_fields, parameters_of
from fashion_lit.parts.trust import (
    check_import_path,
    find_class,
    is_import_path,
    is_within,
    not_trusted,
    trusted_plugins,
)
from fashion_lit.text import describe_error


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Args:
        base: import path of the class that parts derive from.
        given: arguments of the constructor that this program gives, so they are no settings.
        defaults: arguments that this program gives unless they are set.
        modules: those whose classes of this kind run no code of others, whatever their arguments.
            (torchmetrics has networks that load any model by its name, with its code.)
    """

    base: str
    modules: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()


# By the setting that holds the part's name and arguments; of the last two there may be several.
KINDS = {
    "model.network": Kind(
        "torch.nn.Module",
        ("torch.nn", "torchvision.models", "torchvision.ops", "timm.models", "timm.layers"),
        ("in_channels", "in_chans", "num_classes"),
    ),
    "optimizer": Kind("torch.optim.Optimizer", ("torch.optim", "timm.optim"), ("params",)),
    "scheduler": Kind(
        "torch.optim.lr_scheduler.LRScheduler", ("torch.optim",), ("optimizer", "last_epoch")
    ),
    "augment.own": Kind("builtins.object"),
    "data.source": Kind("fashion_lit.data.sources.source.ImageSource"),
    "callbacks": Kind("lightning.pytorch.Callback", ("lightning.pytorch.callbacks",)),
    "loggers": Kind(
        "lightning.pytorch.loggers.Logger",
        ("lightning.pytorch.loggers",),
        defaults=("save_dir", "run_name", "id", "tracking_uri", "artifact_location"),
    ),
}
SEVERAL = ("callbacks", "loggers")
PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
# Callbacks that contradict this program, and what to use instead.
REPLACED = {
    "WeightAveraging": "use averaging=ema or averaging=swa, which resume exactly",
    "ProgressBar": "fashion-lit draws its own; trainer.enable_progress_bar=false hides it",
    "ModelSummary": "use trainer.enable_model_summary=true",
    "LearningRateFinder": "it changes the run before it begins; use fashion-lit find-lr",
    "BatchSizeFinder": "it changes the run before it begins; set data.batch_size",
    "BaseFinetuning": "use model=resnet18 with model.freeze_backbone and model.unfreeze_epoch",
    "GradientAccumulationScheduler": "a setting's keys are texts; use a class of your own, or "
    "trainer.accumulate_grad_batches",
    "LambdaCallback": "no setting can hold a function; use a class of your own",
    "ModelPruning": "torch's pruning fails on weights in channels_last order, as convolutions have "
    "them here; prune in a class of your own",
    "SpikeDetection": "Lightning 2.6 cannot load its state; a loss that is not finite ends a run "
    "anyway",
    "BasePredictionWriter": "a run does not predict; use fashion_lit.predict",
}


def named_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {setting: import path} of all parts that a configuration names by import path."""
    nodes = {setting: look_up(config, setting) for setting in KINDS if setting not in SEVERAL}
    for group in SEVERAL:
        found = config.get(group)
        if isinstance(found, Mapping):
            nodes |= {f"{group}.{key}": node for key, node in found.items()}
    names = {s: node.get("name") for s, node in nodes.items() if isinstance(node, Mapping)}
    return {setting: str(name) for setting, name in names.items() if is_import_path(name)}


def check_trusted_parts(config: Mapping[str, Any]) -> None:
    """Raise UserError unless the packages of all parts of a configuration are trusted.

    Nothing is imported. The message names all packages, so that the user can decide at once.
    """
    parts = {f"{setting}.name": path for setting, path in named_parts(config).items()}
    for setting, path in parts.items():
        check_import_path(setting, path)
    needed = {s: path for s, path in parts.items() if not needs_no_trust(s, path)}
    others = {s: p for s, p in needed.items() if p.partition(".")[0] not in trusted_plugins()}
    if others:
        raise not_trusted(others)


def plugins_of(config: Mapping[str, Any]) -> list[str]:
    """Return the packages that a command with this configuration has to trust, sorted."""
    parts = named_parts(config).items()
    return sorted({path.partition(".")[0] for s, path in parts if not needs_no_trust(s, path)})


def needs_no_trust(setting: str, path: str) -> bool:
    """Return whether a part, of a setting such as "optimizer", is in a module that is trusted."""
    return is_within(path, kind_of(setting.removesuffix(".name")).modules)


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """Return what a configuration has at a dotted path; None if it has nothing there."""
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def name_setting(group: str) -> str | None:
    """Return the setting of a group that may name a class by its import path; None: it has none."""
    if group in SEVERAL:
        return f"{group}.KEY.name"
    settings = [setting for setting in KINDS if setting.partition(".")[0] == group]
    return f"{settings[0]}.name" if settings else None


def holds_part(setting: str) -> bool:
    """Return whether a setting may name a class by its import path, such as "callbacks.swa"."""
    return setting in KINDS or setting.partition(".")[0] in SEVERAL


def kind_of(setting: str) -> Kind:
    """Return the kind of the part that a setting holds, such as "callbacks.swa"."""
    return KINDS[setting] if setting in KINDS else KINDS[setting.partition(".")[0]]


def part_class(setting: str, path: str) -> type[Any]:
    """Return the class of a part, imported; raises UserError as `find_class` does.

    Args:
        setting: that holds the part, such as "optimizer" or "callbacks.swa".
        path: the import path of its class.
    """
    kind = kind_of(setting)
    module, _, name = kind.base.rpartition(".")
    base = getattr(import_module(module), name)
    found = find_class(path, base, f"{setting}.name", kind.modules)
    if setting == "augment.own":
        _check_augmentation(found, path)
    for parent in found.__mro__:
        if parent.__name__ in REPLACED and parent.__module__.startswith("lightning."):
            raise UserError(f"`{setting}.name` cannot be {path}: {REPLACED[parent.__name__]}.")
    return found


def part_fields(setting: str, path: str) -> Fields:
    """Return the settings of a part besides its name, {name: (type, default)}.

    A schedule also has `interval`: whether it is stepped at every epoch or at every step.
    """
    kind, found = kind_of(setting), part_class(setting, path)
    fields = class_fields(found, exclude=kind.given)
    for name in kind.defaults:
        if name in fields:
            fields[name] = (fields[name][0], None)
    if setting == "scheduler" and not is_plateau(found):
        fields["interval"] = (Literal["epoch", "step"], "epoch")
    return fields


def build_part(setting: str, settings: Mapping[str, Any], *positional: Any, **given: Any) -> Any:
    """Build a part from {"name": import path, **arguments}.

    Raises UserError if the path names no class of this kind, or the constructor raises an error.

    Args:
        setting: that holds the part.
        settings: its name and arguments.
        positional: arguments that come first, such as an optimizer's parameters.
        given: arguments for constructors that have them, unless they are set.
    """
    arguments = dict(settings)
    kind = part_class(setting, arguments.pop("name"))
    known, _ = parameters_of(kind)
    accepted = {name: value for name, value in given.items() if name in known}
    try:
        return kind(*positional, **(accepted | arguments))
    except (Exception, SystemExit) as error:
        path = f"{kind.__module__}.{kind.__qualname__}"
        raise error_of_part(setting, path, "be built from its settings", error) from error


def logger_places(folder: Path) -> dict[str, str]:
    """Return the arguments that make a logger write into a folder, for constructors with them.

    MLflow refuses files for its records by now, so they are in a database.
    """
    places = {"save_dir": str(folder), "artifact_location": (folder / "artifacts").as_uri()}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        places["tracking_uri"] = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    return places


def error_of_part(setting: str, path: str, task: str, error: BaseException) -> UserError:
    """Return one sentence for the error that a user's class raised in a task."""
    return UserError(
        f"Expected {path} of `{setting}` to {task}, but it raised {describe_error(error)}."
    )


def is_plateau(kind: type) -> bool:
    """Return whether a schedule reads the validation loss, as torch's ReduceLROnPlateau does."""
    return any(f"{c.__module__}.{c.__name__}" == PLATEAU for c in kind.__mro__)


def _check_augmentation(found: type, path: str) -> None:
    """Raise UserError unless objects of a class can be called with images and a generator."""
    call = next((vars(c)["__call__"] for c in found.__mro__ if "__call__" in vars(c)), None)
    try:
        if call is None or issubclass(found, type):
            raise TypeError
        inspect.signature(call).bind(None, None, None)
    except TypeError:
        raise UserError(
            "Expected `augment.own.name` to name a class whose objects are called with images "
            f"(B, H, W) uint8 and a generator, but those of {path} are not."
        ) from None
