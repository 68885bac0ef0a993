"""The kinds of parts that a setting may name by import path, and the settings of such a part.

named_parts({"optimizer": {"name": "torch.optim.RAdam", "lr": 1e-3}, …})
# {"optimizer": "torch.optim.RAdam"}
part_fields("optimizer", "torch.optim.RAdam")  # {"lr": (float | Tensor, 0.001), …}
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fashion_lit.errors import UserError
from fashion_lit.parts.arguments import Fields, class_fields, parameters_of
from fashion_lit.parts.trust import (
    TRUSTED,
    check_import_path,
    find_class,
    is_import_path,
    not_trusted,
    trusted_plugins,
)
from fashion_lit.text import shorten


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Args:
        base: import path of the class that parts derive from.
        given: arguments of the constructor that this program gives, so they are no settings.
        defaults: arguments that this program gives unless they are set.
    """

    base: str
    given: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()


# By the setting that holds the part's name and arguments; of the last two there may be several.
KINDS = {
    "model.network": Kind("torch.nn.Module", ("in_channels", "in_chans", "num_classes")),
    "optimizer": Kind("torch.optim.Optimizer", ("params",)),
    "scheduler": Kind("torch.optim.lr_scheduler.LRScheduler", ("optimizer", "last_epoch")),
    "augment.own": Kind("builtins.object"),
    "data.source": Kind("fashion_lit.data.sources.source.ImageSource"),
    "callbacks": Kind("lightning.pytorch.Callback"),
    "loggers": Kind(
        "lightning.pytorch.loggers.Logger",
        defaults=("save_dir", "run_name", "id", "tracking_uri", "artifact_location"),
    ),
}
TRIED_IMAGES, TRIED_CALLS = 8, 8  # of an augmentation
SEVERAL = ("callbacks", "loggers")
PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
# Callbacks that contradict this program, and what to use instead.
REPLACED = {
    "WeightAveraging": "use averaging=ema or averaging=swa, which resume exactly",
    "ProgressBar": "fashion-lit draws its own; trainer.enable_progress_bar=false hides it",
    "ModelSummary": "use trainer.enable_model_summary=true",
    "LearningRateFinder": "it changes the run before it begins; use fashion-lit find-lr",
    "BatchSizeFinder": "it changes the run before it begins; set data.batch_size",
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
    trusted = (*TRUSTED, *trusted_plugins())
    others = {s: path for s, path in parts.items() if path.partition(".")[0] not in trusted}
    if others:
        raise not_trusted(others)


def plugins_of(config: Mapping[str, Any]) -> list[str]:
    """Return the packages that a command with this configuration has to trust, sorted."""
    packages = {path.partition(".")[0] for path in named_parts(config).values()}
    return sorted(packages.difference(TRUSTED))


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
    module, _, name = kind_of(setting).base.rpartition(".")
    found = find_class(path, getattr(import_module(module), name), f"{setting}.name")
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


def check_parts(config: Mapping[str, Any], source: Any) -> None:
    """Raise UserError unless the callbacks, loggers and augmentation that are named can be built.

    Optimizers, schedules and networks are built together: see `models.build`.

    Args:
        config: settings that fit the schema.
        source: the source of the images, which an augmentation has to accept.
    """
    states: dict[str, str] = {}
    for setting in named_parts(config):
        if setting.partition(".")[0] in SEVERAL:
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                places = logger_places(Path(folder))
                part = build_part(setting, look_up(config, setting), **places)
            key = _state_key(setting, part)
            if key in states:
                raise UserError(
                    f"Expected callbacks of different classes or settings, but `{states[key]}` and "
                    f"`{setting}` are {key}; leave out one of them."
                )
            states[key] = setting
        if setting == "augment.own":
            colours = (source.channels,) if source.channels > 1 else ()
            shape = (TRIED_IMAGES, *colours, source.image_size, source.image_size)
            check_augmentation(build_part(setting, look_up(config, setting)), shape)


def _state_key(setting: str, part: Any) -> str:
    """Return under which key a callback's state is in a checkpoint; of a logger, the setting."""
    try:
        return str(getattr(part, "state_key", setting))
    except Exception as error:
        path = f"{type(part).__module__}.{type(part).__qualname__}"
        raise error_of_part(setting, path, "have a `state_key`", error) from error


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
    reason = shorten(" ".join(str(error).split()).rstrip("."), 300)
    return UserError(
        f"Expected {path} of `{setting}` to {task}, but it raised {type(error).__name__}: {reason}."
    )


def check_augmentation(own: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """Raise UserError unless a user's augmentation returns images of the shape that it gets.

    They have to depend on the images and torch's generators alone, so that a run can resume.
    """
    import torch  # which this package is imported without

    path = f"{type(own).__module__}.{type(own).__qualname__}"
    with torch.random.fork_rng(devices=[]):
        images = torch.randint(256, shape, dtype=torch.uint8)
        results: list[Any] = []
        for _ in range(TRIED_CALLS):
            draws = torch.Generator().manual_seed(0)
            torch.default_generator.manual_seed(0)
            try:
                results.append(own(images.clone(), draws))
            except (Exception, SystemExit) as error:
                task = f"take images {shape} uint8"
                raise error_of_part("augment.own", path, task, error) from error
    changed = results[0]
    is_tensor = isinstance(changed, torch.Tensor)
    if not is_tensor or (changed.shape, changed.dtype) != (images.shape, images.dtype):
        kind = f"{tuple(changed.shape)} {changed.dtype}" if is_tensor else type(changed).__name__
        raise UserError(
            f"Expected {path} of `augment.own` to return images {tuple(images.shape)} uint8, as it "
            f"gets them, but it returned {kind}."
        )
    if not all(torch.equal(changed, result) for result in results):
        raise UserError(
            f"Expected {path} of `augment.own` to draw from the generator that it gets, or from "
            "torch's default ones, so that a run can resume, but from generators in the same state "
            "it returned different images."
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
