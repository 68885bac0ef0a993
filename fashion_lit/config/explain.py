"""Describe an invalid setting in one sentence, with a suggestion of the intended name.

explain(error, config, schema, reserved={})  # "Unknown setting `optimizer.l`; …"
did_you_mean("adma", ["adam", "sgd"])  # "; did you mean `adam`?"
"""

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fashion_lit.text import shorten


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
        paths = list(_key_paths(schema))
        hint = did_you_mean(path, paths) or _siblings(path, paths)
        return f"Unknown setting `{path}`{hint}"
    expected = [_expectation(d) for d in details if _locate(config, d["loc"])[0] == path]
    expectation = " or ".join(dict.fromkeys(expected))
    if first["type"] == "missing":
        missing = f"{path}.{first['loc'][-1]}"
        return (
            f"Expected a value for `{missing}`, but it is missing; fashion-lit train --cfg job "
            "shows all settings."
        )
    return f"Expected `{path}` to be {expectation}, but got {shorten(repr(value))}."


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
        "greater_than": "greater than {gt:g}",
        "greater_than_equal": "at least {ge:g}",
        "less_than": "less than {lt:g}",
        "less_than_equal": "at most {le:g}",
        "literal_error": "one of {expected}",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_pattern_mismatch": "a time as DD:HH:MM:SS",
        "list_type": "a list",
        "tuple_type": "a list",
        "too_short": "a list of at least {min_length} values",
        "too_long": "a list of at most {max_length} values",
        "model_type": "a group of settings",
        "none_required": "null",
    }
    if kind == "literal_error" and " or " not in context["expected"]:
        return context["expected"]
    message = str(detail["msg"])
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


def did_you_mean(text: str, choices: Collection[str], prefix: str = "") -> str:
    """Return '; did you mean `…`?' with the choice most similar to `text`, '' if none is similar.

    Dotted paths are compared by their last part (`lr` is similar to `optimizer.lr`); the whole path
    breaks ties.
    """

    def similarity(choice: str) -> float:
        last, choice_last = text.split(".")[-1], choice.split(".")[-1]
        whole = difflib.SequenceMatcher(None, text, choice).ratio()
        return difflib.SequenceMatcher(None, last, choice_last).ratio() + whole / 100

    best = max(choices, key=similarity, default="")
    return f"; did you mean `{prefix}{best}`?" if best and similarity(best) > 0.6 else ""
