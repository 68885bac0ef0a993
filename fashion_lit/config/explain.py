"""Describe an invalid setting in one sentence, with a suggestion of the intended name.

explain(error, config, schema, reserved={})  # "Unknown setting `optimizer.l`; …"
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from fashion_lit.config.groups import CONF_DIR, choice_files, default_groups, set_by_choice
from fashion_lit.text import (
    CONTAINED,
    contains,
    did_you_mean,
    last_part,
    nearest,
    question,
    shorten,
    similarity,
)

# Errors of types that no plain value can have.
NOT_PLAIN = ("needs_python_object", "callable_type", "is_instance_of")
# Other programs' words for settings of this one, whose names have other letters.
OTHER_WORDS = {
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "learning_rate": "optimizer.lr",
    "max_lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "bs": "data.batch_size",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "amp": "precision",
    "fp16": "precision",
    "clip": "trainer.gradient_clip_val",
    "grad_clip": "trainer.gradient_clip_val",
    "arch": "model",
    "network": "model",
    "backbone": "model",
    "dataset": "data",
    "augmentation": "augment",
    "crop": "augment.shift",
    "random_crop": "augment.shift",
    "cutout": "augment.erase",
    "name": "run_dir",
    "run_name": "run_dir",
    "resume": "run_dir",
    "output": "output_root",
    "out": "output_root",
    "checkpoint_path": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "n_epochs": "trainer.max_epochs",
    "gpu": "trainer.accelerator",
    "cuda": "trainer.accelerator",
    "ema": "model.ema_decay",
    "swa": "model.swa_start",
    "early_stop": "early_stopping.patience",
    "log_dir": "output_root",
}


def explain(
    error: ValidationError,
    config: Mapping[str, Any],
    schema: type[BaseModel],
    reserved: Mapping[str, str],
) -> str:
    """Return a sentence about the first error: the key, the expected and the given value, a remedy.

    Unknown settings come before other errors.

    Args:
        error: validation error of `config` against `schema`.
        config: the invalid configuration.
        schema: the schema.
        reserved: {"trainer.logger": "what to use instead"}, for settings that this project sets
            itself.
    """
    details = error.errors(include_url=False)
    unknown = [d for d in details if d["type"] == "extra_forbidden"]
    first = (unknown or details)[0]
    path, value = _locate(config, first["loc"])
    if unknown:
        while isinstance(value, dict) and value:  # a misspelled group: name the setting in it
            key, value = next(iter(value.items()))
            path = f"{path}.{key}"
        if path in reserved:
            return f"`{path}` is set by fashion-lit itself; use {reserved[path]} instead."
        return unknown_setting(path, list(_key_paths(schema)))
    expected = [
        _expectation(d)
        for d in details
        if _locate(config, d["loc"])[0] == path and d["type"] not in NOT_PLAIN
    ]
    expectation = " or ".join(dict.fromkeys(expected)) or "null, as it can be no plain value"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return (
            f"Expected `{path}` to be a list of at least {first['loc'][-1] + 1} values, but got "
            f"{shorten(repr(value))}."
        )
    if first["type"] == "missing":
        return _describe_missing([d["loc"] for d in details if d["type"] == "missing"])
    literals = [str(d.get("ctx")) for d in details if d["type"] == "literal_error"]
    choices = re.findall(r"'([^']*)'", " ".join(literals))
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"Expected `{path}` to be {expectation}, but got {shorten(repr(value))}{hint or '.'}"


def _describe_missing(locations: Sequence[Sequence[int | str]]) -> str:
    """Return a sentence about all missing settings in the group of the first one."""
    paths = [".".join(map(str, location)) for location in locations]
    group = paths[0].rpartition(".")[0]
    missing = [f"`{path}`" for path in paths if path.rpartition(".")[0] == group]
    return (
        f"Expected a value for {' and '.join(missing)}, but "
        f"{'it is' if len(missing) == 1 else 'they are'} missing; fashion-lit train --cfg job "
        "shows all settings."
    )


def unknown_setting(path: str, known: Sequence[str]) -> str:
    """Return a sentence about the unknown setting `path`, given the dotted paths of known ones."""
    word = last_part(path)
    meant = suggest(path, known)
    if word in ("num_workers", "workers"):
        hint = "; there are no worker processes, because the data is in memory."
    elif choice := next((c for c, names in _settings_by_choice() if path in names), None):
        hint = f"; it exists with {choice}."
    elif meant and (word in OTHER_WORDS or similarity(path, meant[0]) >= CONTAINED):
        hint = question(meant)
    else:
        hint = _in_other_choices(path) or question(meant) or _siblings(path, known)
    return f"Unknown setting `{shorten(path)}`{hint}"


def suggest(path: str, known: Sequence[str]) -> list[str]:
    """Return the settings that an unknown one may mean: by OTHER_WORDS, or the most similar."""
    word = last_part(path)
    if word in OTHER_WORDS and ("." not in path or word not in map(last_part, known)):
        return [OTHER_WORDS[word]]
    groups = {name.partition(".")[0] for name in known if "." in name}
    group = path.partition(".")[0]
    if "." in path and group in groups:  # in another group, only the same name
        known = [k for k in known if k.startswith(f"{group}.") or last_part(k) == word]
    return nearest(path, [*known, *(default_groups() if "." not in path else ())])


def _in_other_choices(path: str) -> str:
    """Return "; with optimizer=sgd there is `optimizer.momentum`." if other choices have it."""
    for choice, names in _settings_by_choice():
        found = [name for name in names if contains(last_part(name), last_part(path))]
        if found:
            listed = " and ".join(f"`{name}`" for name in found)
            return f"; with {choice} there {'is' if len(found) == 1 else 'are'} {listed}."
    return ""


@cache
def _settings_by_choice() -> list[tuple[str, list[str]]]:
    groups = sorted(default_groups() - {"experiment", "debug"})
    files = [(group, *pair) for group in groups for pair in choice_files(group, [CONF_DIR]).items()]
    return [(f"{group}={name}", set_by_choice(group, path)) for group, name, path in files]


def _locate(config: Mapping[str, Any], location: Sequence[int | str]) -> tuple[str, Any]:
    """Return the dotted path and the value at the part of `location` that `config` contains."""
    node: Any = config
    path = []
    for key in location:  # pydantic may append the name of a union's member
        children: Any = dict(enumerate(node)) if isinstance(node, list) else node
        if not isinstance(children, dict) or key not in children:
            break
        node = children[key]
        path.append(str(key))
    return ".".join(path), node


def _expectation(detail: Mapping[str, Any]) -> str:
    context = detail.get("ctx", {})
    kind = detail["type"]
    phrases = {
        "greater_than": "greater than {gt:,.12g}",
        "greater_than_equal": "at least {ge:,.12g}",
        "less_than": "less than {lt:,.12g}",
        "less_than_equal": "at most {le:,.12g}",
        "literal_error": "one of {expected}",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "text of at least {min_length} character",
        "string_pattern_mismatch": "a time as DD:HH:MM:SS",
        "list_type": "a list, such as [a,b]",
        "tuple_type": "a list, such as [a,b]",
        "too_short": "a list of at least {min_length} values",
        "too_long": "a list of at most {max_length} values",
        "model_type": "a group of settings",
        "none_required": "null",
    }
    if kind == "literal_error" and " or " not in context["expected"]:
        return context["expected"]
    message = str(detail["msg"]).removeprefix("Value error, ")
    return phrases[kind].format(**context) if kind in phrases else message[:1].lower() + message[1:]


def _key_paths(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all settings of a schema, but not of the groups themselves."""
    for name, field in schema.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from _key_paths(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _siblings(path: str, paths: Sequence[str]) -> str:
    """Return '; `group` has …' with the settings in the group of `path`, if they are few."""
    group = path.rpartition(".")[0]
    names = [p.rpartition(".")[2] for p in paths if p.rpartition(".")[0] == group]
    if not group or not 0 < len(names) <= 15:
        return "; fashion-lit train --cfg job shows them all."
    return f"; `{group}` has {', '.join(sorted(names))}."
