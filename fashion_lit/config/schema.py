"""Validate configurations, with a one-sentence error for an invalid one.

The schema is derived from signatures: the keys of `optimizer`, `model.network`, … are the
keyword-only arguments of the function or class that `name` selects, with their types and bounds. Of
a class that `name` selects by its import path, they are all arguments.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError

from fashion_lit.config.combinations import check_combinations
from fashion_lit.config.explain import explain
from fashion_lit.config.settings import Config, leaves
from fashion_lit.config.trainer import (
    OWN_TRAINER_KEYS,
    TrainerSettings,
)
from fashion_lit.data.augment import Augment
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.data.sources.folder import ImageFolder
from fashion_lit.data.sources.idx import IdxFiles
from fashion_lit.data.sources.source import ImageSource, check_source
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.errors import UserError
from fashion_lit.models.build import CLASSIFIERS, check_network, check_optimizer
from fashion_lit.models.cnn import SET_BY_DATA, CNNClassifier
from fashion_lit.models.distillation import Distillation
from fashion_lit.models.networks import NAMES as NETWORK_NAMES
from fashion_lit.models.networks import network_class
from fashion_lit.models.optimization import OPTIMIZERS
from fashion_lit.models.schedules import SCHEDULERS
from fashion_lit.parts.arguments import Fields, keyword_fields, named_schema, object_schema
from fashion_lit.parts.checks import check_parts
from fashion_lit.parts.kinds import (
    SEVERAL,
    build_part,
    check_trusted_parts,
    holds_part,
    look_up,
    part_fields,
)
from fashion_lit.parts.trust import is_import_path
from fashion_lit.text import did_you_mean, shorten

SOURCES: dict[str, type[ImageSource]] = {
    "fashion_mnist": FashionMNIST,
    "synthetic": SyntheticGarments,
    "idx": IdxFiles,
    "folder": ImageFolder,
    "own": ImageSource,  # the class that `data.source.name` names
}
# Arguments of classifiers that are no settings in `model`.
BUILT_WITH = ("network", "class_names", "in_channels", "optimizer", "scheduler")
PREDICTS = ("data", "model", "augment", "trainer")  # what decides a trained run's predictions
NonEmptyText = Annotated[str, Field(min_length=1)]
Places = Annotated[list[NonEmptyText], Field(min_length=1)]


def check(config: Config) -> Config:
    """Return the settings with the types of their schema, such as 1.0 for an `lr` of 1.

    Raises UserError unless they are valid, individually and in combination.
    """
    check_trusted_parts(config)
    for key, value in leaves(config).items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(
                f"Expected `{key}` to be a number below 2**63, but got {shorten(str(value))}."
            )
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, float) and n and not 1e-30 <= abs(n) <= 1e30 for n in numbers) and all(
            isinstance(n, int | float) and math.isfinite(n) for n in numbers
        ):
            raise UserError(
                f"Expected `{key}` to be 0 or of a size from 1e-30 to 1e30, but got {value!r}."
            )
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"Expected `{key}` to hold no NUL character, but got {value!r}.")
    schema = run_schema(config)
    validate(config, schema)  # without the classes; `source_of` would not name an unknown setting
    source = source_of(config)
    typed = validate(config, schema, source)
    check_parts(typed, source)
    check_combinations(typed, source)
    check_network(typed, source)
    check_optimizer(typed, source)
    return typed


def source_of(config: Mapping[str, Any]) -> ImageSource:
    """Build the image source that the settings in `data` describe, which reads no images.

    Raises UserError unless they are valid, and its files are there if it needs to read from them
    what its classes and sizes are.
    """
    kind = SOURCES[chosen_name(config, "data", SOURCES)]
    if kind is ImageSource:
        source = build_part("data.source", config["data"]["source"])
        check_source(source)
        return source
    fields = keyword_fields(kind)
    own = {key: value for key, value in config["data"].items() if key in fields}
    typed = validate({"data": own}, object_schema(data=(object_schema(**fields), ...)))
    source = kind(**typed["data"])
    check_source(source)
    return source


def check_recorded(config: Config, place: Path) -> None:
    """Raise UserError unless the settings of a run's data and model, in a file `place`, are valid.

    Settings that were added since the run was made may be missing.
    """
    check_trusted_parts({group: config[group] for group in PREDICTS if group in config})
    try:
        fields = prediction_fields(config)
        parts = {group: config[group] for group in fields if group in config}
        validate(parts, object_schema(**fields))
    except UserError as error:
        raise UserError(f"{place} has no valid settings: {error}") from None


def validate(config: Config, schema: type[BaseModel], source: ImageSource | None = None) -> Config:
    """Return `config` with the types of `schema`.

    Raises UserError, with the most similar valid name if any, unless it fits.

    Args:
        config: settings.
        schema: their schema.
        source: the image source, on whose classes and sizes some settings depend; None: unknown,
            then any names of classes are valid, and their settings are returned in any order.
    """
    try:
        model = schema.model_validate_json(json.dumps(config), strict=True, context=source)
        return model.model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        reserved = {f"trainer.{key}": instead for key, instead in OWN_TRAINER_KEYS.items()}
        raise UserError(explain(error, config, schema, reserved)) from None


def run_schema(config: Config) -> type[BaseModel]:
    """Return the schema of a whole configuration, given the `name` selected in each group."""
    return object_schema(
        seed=(int, Field(ge=0, lt=2**32)),
        test=(bool, ...),
        checkpoint=(CHECKPOINT, ...),
        tensorboard=(TENSORBOARD, ...),
        early_stopping=(object_schema(patience=(PositiveInt | None, ...)), ...),
        ckpt_path=(str | None, ...),
        init_from=(str | None, None),
        teacher=(Places | None, None),
        distillation=(object_schema(**keyword_fields(Distillation)), None),
        output_root=(NonEmptyText, ...),
        run_dir=(NonEmptyText, ...),
        sweep_name=(NonEmptyText, ...),
        launcher=(dict[str, Any], ...),  # not part of a run; `sweeps.launch` checks it
        plugins=(list[NonEmptyText], []),  # `parts.trust` checks it
        optimizer=(named_schema(chosen_fields(config, "optimizer", OPTIMIZERS)), ...),
        scheduler=(named_schema(chosen_fields(config, "scheduler", SCHEDULERS)), ...),
        **{group: (several_schema(config, group), None) for group in SEVERAL},
        **prediction_fields(config),
    )


def prediction_fields(config: Config) -> Fields:
    """Return the fields of a configuration that decide what a trained run predicts."""
    return {
        "data": (named_schema(data_fields(config)), ...),
        "model": (named_schema(model_fields(config)), ...),
        "augment": (object_schema(**augment_fields(config)), ...),
        "trainer": (TrainerSettings, ...),
    }


def data_fields(config: Config) -> Fields:
    """Return the fields of `data`: those of the image source and of the data module."""
    source = SOURCES[chosen_name(config, "data", SOURCES)]
    fields = keyword_fields(FashionMNISTDataModule, exclude={"augment", "seed"})
    if source is not ImageSource:
        return keyword_fields(source) | fields
    part = part_fields("data.source", chosen_name(config, "data.source", ()))
    return fields | {"source": (named_schema(part), ...)}


def model_fields(config: Config) -> Fields:
    """Return the fields of `model`: those of the classifier and, under `network`, the network."""
    classifier = CLASSIFIERS[chosen_name(config, "model", CLASSIFIERS)]
    fields = keyword_fields(classifier, exclude=BUILT_WITH)
    if classifier is CNNClassifier:
        name = chosen_name(config, "model.network", NETWORK_NAMES)
        arguments = (
            part_fields("model.network", name)
            if is_import_path(name)
            else keyword_fields(network_class(name), exclude=SET_BY_DATA, positional_too=True)
        )
        fields["network"] = (named_schema(arguments), ...)
    return fields


def augment_fields(config: Config) -> Fields:
    """Return the fields of `augment`, with those of the user's own augmentation, if any."""
    fields = keyword_fields(Augment, exclude={"class_names", "own"})
    augment = config.get("augment")
    own: Any = None
    if isinstance(augment, dict) and augment.get("own") is not None:
        own = named_schema(part_fields("augment.own", chosen_name(config, "augment.own", ())))
    return fields | {"own": (own, None)}


def chosen_fields(config: Config, path: str, choices: Mapping[str, Callable[..., Any]]) -> Fields:
    """Return the fields of an optimizer or schedule, one of the choices or the user's own."""
    name = chosen_name(config, path, choices)
    return part_fields(path, name) if is_import_path(name) else keyword_fields(choices[name])


def several_schema(config: Config, group: str) -> type[BaseModel]:
    """Return the schema of `callbacks` or `loggers`: any number of parts, each with its name."""
    parts = config.get(group) or {}
    if not isinstance(parts, dict):
        return object_schema()
    paths = {key: f"{group}.{key}" for key in parts}
    names = {key: chosen_name(config, path, ()) for key, path in paths.items()}
    return object_schema(
        **{key: (named_schema(part_fields(paths[key], names[key])), ...) for key in parts}
    )


def chosen_name(config: Mapping[str, Any], path: str, choices: Collection[str]) -> str:
    """Return the `name` of the group at a dotted path: one of `choices` or an import path.

    Raises UserError for other names.
    """
    node = look_up(config, path)
    if not isinstance(node, dict):
        remedy = f"choose one with {path.split('.')[0]}=NAME" if choices else f"set {path}.name"
        raise UserError(
            f"Expected `{path}` to be a group of settings, but got {shorten(repr(node))}; {remedy}."
        )
    name = node.get("name")
    if is_import_path(name) and holds_part(path):
        return str(name)
    if not isinstance(name, str) or name not in choices:
        kinds = [f"one of {', '.join(sorted(choices))}"] if choices else []
        kinds += ["an import path"] if holds_part(path) else []
        raise UserError(
            f"Expected `{path}.name` to be {' or '.join(kinds)}, but "
            f"{'it is missing' if name in (None, '???') else f'got {shorten(repr(name))}'}"
            f"{did_you_mean(str(name), choices, f'{path}.name=') or '.'}"
        )
    return name


CHECKPOINT = object_schema(
    every_minutes=(PositiveFloat, ...), every_steps=(PositiveInt | None, ...)
)
TENSORBOARD = object_schema(pictures=(bool, ...), norms_every_steps=(PositiveInt | None, ...))
