"""Validate configurations, with a one-sentence error for an invalid one.

The schema is derived from signatures: the keys of `optimizer`, `model.network`, … are the
keyword-only arguments of the function or class that `name` selects, with their types and bounds.
"""

import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
)

from fashion_lit.config.explain import explain
from fashion_lit.config.settings import Config, leaves
from fashion_lit.config.trainer import (
    OWN_TRAINER_KEYS,
    TrainerSettings,
    check_plateau,
    check_trainer,
)
from fashion_lit.data.augment import Augment
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.mixing import check_mixing
from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.data.sources.folder import ImageFolder
from fashion_lit.data.sources.idx import IdxFiles
from fashion_lit.data.sources.source import ImageSource, check_source
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.data.split import check_sizes, number_of
from fashion_lit.errors import UserError
from fashion_lit.models.build import CLASSIFIERS, check_model, check_network
from fashion_lit.models.cnn import SET_BY_DATA, CNNClassifier
from fashion_lit.models.distillation import Distillation
from fashion_lit.models.networks import NAMES as NETWORK_NAMES
from fashion_lit.models.networks import network_class
from fashion_lit.models.optimization import OPTIMIZERS
from fashion_lit.models.schedules import SCHEDULERS, check_schedule
from fashion_lit.text import did_you_mean, shorten

SOURCES = {
    "fashion_mnist": FashionMNIST,
    "synthetic": SyntheticGarments,
    "idx": IdxFiles,
    "folder": ImageFolder,
}
# Arguments of classifiers that are no settings in `model`.
BUILT_WITH = ("network", "class_names", "in_channels", "optimizer", "scheduler")
Fields = dict[str, tuple[Any, Any]]  # {name: (type, default)}, arguments of pydantic's create_model
NonEmptyText = Annotated[str, Field(min_length=1)]
Places = Annotated[list[NonEmptyText], Field(min_length=1)]


def check(config: Config) -> Config:
    """Return the settings with the types of their schema, such as 1.0 for an `lr` of 1.

    Raises UserError unless they are valid, individually and in combination.
    """
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
    check_combinations(typed, source)
    check_network(typed, source)
    return typed


def source_of(config: Mapping[str, Any]) -> ImageSource:
    """Build the image source that the settings in `data` describe, which reads no images.

    Raises UserError unless they are valid, and its files are there if it needs to read from them
    what its classes and sizes are.
    """
    kind = SOURCES[chosen_name(config, "data", SOURCES)]
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
    optimizer = OPTIMIZERS[chosen_name(config, "optimizer", OPTIMIZERS)]
    scheduler = SCHEDULERS[chosen_name(config, "scheduler", SCHEDULERS)]
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
        optimizer=(named_schema(keyword_fields(optimizer)), ...),
        scheduler=(named_schema(keyword_fields(scheduler)), ...),
        **prediction_fields(config),
    )


def prediction_fields(config: Config) -> Fields:
    """Return the fields of a configuration that decide what a trained run predicts."""
    return {
        "data": (named_schema(data_fields(config)), ...),
        "model": (named_schema(model_fields(config)), ...),
        "augment": (object_schema(**keyword_fields(Augment, exclude={"class_names"})), ...),
        "trainer": (TrainerSettings, ...),
    }


def data_fields(config: Config) -> Fields:
    """Return the fields of `data`: those of the image source and of the data module."""
    source = SOURCES[chosen_name(config, "data", SOURCES)]
    exclude = {"augment", "seed"}
    return keyword_fields(source) | keyword_fields(FashionMNISTDataModule, exclude=exclude)


def model_fields(config: Config) -> Fields:
    """Return the fields of `model`: those of the classifier and, under `network`, the network."""
    classifier = CLASSIFIERS[chosen_name(config, "model", CLASSIFIERS)]
    fields = keyword_fields(classifier, exclude=BUILT_WITH)
    if classifier is CNNClassifier:
        network = network_class(chosen_name(config, "model.network", NETWORK_NAMES))
        arguments = keyword_fields(network, exclude=SET_BY_DATA, positional_too=True)
        fields["network"] = (named_schema(arguments), ...)
    return fields


def chosen_name(config: Mapping[str, Any], path: str, choices: Collection[str]) -> str:
    """Return the `name` of the group at a dotted path; raise UserError unless in `choices`."""
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise UserError(
            f"Expected `{path}` to be a group of settings, but got {shorten(repr(node))}; choose "
            f"one with {path.split('.')[0]}=NAME."
        )
    name = node.get("name")
    if not isinstance(name, str) or name not in choices:
        raise UserError(
            f"Expected `{path}.name` to be one of {', '.join(sorted(choices))}, but got "
            f"{shorten(repr(name))}{did_you_mean(str(name), choices, f'{path}.name=') or '.'}"
        )
    return name


def keyword_fields(
    function: Callable[..., Any], *, exclude: Collection[str] = (), positional_too: bool = False
) -> Fields:
    """Return {name: (type, default)} of the keyword-only arguments, for pydantic's create_model.

    With `positional_too`, include arguments that can be given by position or keyword.
    """
    hints = get_type_hints(
        function.__init__ if inspect.isclass(function) else function, include_extras=True
    )
    kinds = {inspect.Parameter.KEYWORD_ONLY}
    if positional_too:
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: (
            hints.get(name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in kinds and name not in exclude
    }


def object_schema(**fields: tuple[Any, Any]) -> type[BaseModel]:
    """Return a schema that allows only these keys, and no infinite or NaN numbers."""
    rules = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model("Config", __config__=rules, **fields)  # type: ignore[call-overload]


def named_schema(fields: Fields) -> type[BaseModel]:
    """Return an object schema with a required `name` in addition to the fields."""
    return object_schema(name=(str, ...), **fields)


CHECKPOINT = object_schema(
    every_minutes=(PositiveFloat, ...), every_steps=(PositiveInt | None, ...)
)
TENSORBOARD = object_schema(pictures=(bool, ...), norms_every_steps=(PositiveInt | None, ...))


def check_combinations(config: Config, source: ImageSource) -> None:
    """Raise UserError for settings that are valid individually but not together, or with `source`.

    They fit the schema, and describe the image source `source`.
    """
    data, model, trainer = config["data"], config["model"], config["trainer"]
    num_epochs, num_test = trainer["max_epochs"], source.num_test
    num_val = number_of(data["val_size"], source.num_train)
    num_held_out = 0 if data["validate_on_test"] else num_val
    num_train = check_sizes(source.num_train, num_held_out, data.get("train_size"))
    for key in ("test", "data.validate_on_test"):
        if not num_test and (config["test"] if key == "test" else data["validate_on_test"]):
            raise UserError(
                f"Expected test images for {key}=true, but {source.title} has none; set "
                f"{key}=false."
            )
    if num_train < len(source.class_names):
        raise UserError(
            f"Expected an image to train on of each of the {len(source.class_names)} classes of "
            f"{source.title}, but got {num_train} in all; raise data.train_size, or lower "
            "data.val_size."
        )
    check_mixing(config["augment"], num_epochs)
    if data["batch_size"] > num_train:
        raise UserError(
            f"Expected `data.batch_size` to be at most the {num_train:,} training images, but got "
            f"{data['batch_size']:,}."
        )
    check_model(model)
    num_ranks = trainer["devices"] if isinstance(trainer.get("devices"), int) else 1
    num_images = num_train // max(1, num_ranks)
    single_last = data["batch_size"] > 1 and num_images % data["batch_size"] == 1
    num_val = num_test if data["validate_on_test"] else num_val
    num_batches = {"train": -(-(num_images - single_last) // data["batch_size"])}
    num_batches["val"] = -(-num_val // data["eval_batch_size"])
    check_schedule(config["scheduler"], num_epochs, num_batches["train"] * num_epochs)
    if config["scheduler"]["name"] == "plateau":
        check_plateau(trainer)
    if config["test"]:
        num_batches["test"] = -(-num_test // data["eval_batch_size"])
    check_trainer(trainer, num_batches)
