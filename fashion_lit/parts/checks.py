"""Try the callbacks, loggers and augmentation that a configuration names, before a run is made.

check_parts(config, source)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import (
    SEVERAL,
    build_part,
    error_of_part,
    logger_places,
    look_up,
    named_parts,
)

if TYPE_CHECKING:
    from torch import Tensor

TRIED_IMAGES, TRIED_CALLS = 8, 8  # of an augmentation


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
            try_augmentation(build_part(setting, look_up(config, setting)), source)


def _state_key(setting: str, part: Any) -> str:
    """Return under which key a callback's state is in a checkpoint; of a logger, the setting."""
    try:
        return str(getattr(part, "state_key", setting))
    except Exception as error:
        path = f"{type(part).__module__}.{type(part).__qualname__}"
        raise error_of_part(setting, path, "have a `state_key`", error) from error


def try_augmentation(own: Callable[..., Any], source: Any) -> "list[Tensor]":
    """Return what a user's augmentation makes of the same images from generators in the same state.

    Raises UserError unless it returns images of the shape that it gets.

    Args:
        own: the augmentation.
        source: the source of the images.
    """
    import torch  # which this package is imported without

    path = f"{type(own).__module__}.{type(own).__qualname__}"
    colours = (source.channels,) if source.channels > 1 else ()
    shape = (TRIED_IMAGES, *colours, source.image_size, source.image_size)
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
    for changed in results:
        is_tensor = isinstance(changed, torch.Tensor)
        if not is_tensor or (changed.shape, changed.dtype) != (images.shape, images.dtype):
            kind = (
                f"{tuple(changed.shape)} {changed.dtype}" if is_tensor else type(changed).__name__
            )
            raise UserError(
                f"Expected {path} of `augment.own` to return images {shape} uint8, as it gets "
                f"them, but it returned {kind}."
            )
    return results
