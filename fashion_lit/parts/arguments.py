"""Schemas derived from signatures: the arguments of a function or class are the settings it takes.

fields = keyword_fields(SyntheticGarments)  # {"num_train": (NumImages, 6000), …}
Schema = named_schema(fields)  # a pydantic model with these settings and `name`
"""

import collections.abc
import inspect
import sys
import typing
from collections.abc import Callable, Collection
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.errors import PydanticUserError

Fields = dict[str, tuple[Any, Any]]  # {name: (type, default)}, arguments of pydantic's create_model
RULES = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
OPEN = "**"  # the key in Fields of a class that takes any keyword


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


def parameters_of(kind: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the named arguments of a class's constructor, and whether it takes any others.

    A constructor with `**arguments` is taken to pass them on to that of the next class that has
    one.
    """
    found: dict[str, inspect.Parameter] = {}
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for parent in kind.__mro__[:-1]:
        if "__init__" not in vars(parent):
            continue
        _, *parameters = inspect.signature(parent.__init__).parameters.values()  # without self
        found = {p.name: p for p in parameters if p.kind in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found, False
    return found, bool(found) or kind.__init__ is not object.__init__


def class_fields(kind: type, *, exclude: Collection[str] = ()) -> Fields:
    """Return {name: (type, default)} of all arguments of a class that was not written for this.

    An annotation that cannot be resolved or checked allows any value; a default of None allows
    null. A class that takes any argument has the key OPEN. An argument that is called `name` cannot
    be set, because that setting names the class.
    """
    fields: Fields = {}
    parameters, is_open = parameters_of(kind)
    for name, parameter in parameters.items():
        if name not in (*exclude, "name"):
            default = ... if parameter.default is parameter.empty else parameter.default
            hint = _type_of(parameter, kind)
            fields[name] = (hint | None if default is None else hint, default)
    return fields | ({OPEN: (Any, None)} if is_open else {})


def _type_of(parameter: inspect.Parameter, kind: type) -> Any:
    """Return the type that a parameter of a constructor is annotated with, or Any."""
    if parameter.annotation is parameter.empty:
        return Any
    # Names that a module imports for type checkers alone are usually from these two.
    names = {**vars(typing), **vars(collections.abc)}
    for parent in reversed(kind.__mro__):
        names |= vars(sys.modules[parent.__module__])

    def annotated() -> None: ...

    annotated.__annotations__ = {"value": parameter.annotation}
    try:
        hint = get_type_hints(annotated, names, include_extras=True)["value"]
        if typing.get_origin(hint) is collections.abc.Iterable:  # which pydantic checks too late
            hint = list[typing.get_args(hint)]  # type: ignore[misc]
        create_model("Probe", __config__=RULES, value=(hint, ...))
        return hint
    except (NameError, TypeError, AttributeError, SyntaxError, PydanticUserError):
        return Any


def object_schema(**fields: tuple[Any, Any]) -> type[BaseModel]:
    """Return a schema that allows only these keys, and no infinite or NaN numbers."""
    rules = RULES
    if OPEN in fields:
        rules = ConfigDict(**{**RULES, "extra": "allow"})
    closed = {name: field for name, field in fields.items() if name != OPEN}
    return create_model("Config", __config__=rules, **closed)  # type: ignore[call-overload]


def named_schema(fields: Fields) -> type[BaseModel]:
    """Return an object schema with a required `name` in addition to the fields."""
    return object_schema(name=(str, ...), **fields)
