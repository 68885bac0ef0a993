"""The settings of a class are the arguments of its constructor, with their types."""

import inspect
import json
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger
from pydantic import ValidationError
from torch import nn
from torch.optim.lr_scheduler import CyclicLR

from fashion_lit.parts.arguments import OPEN, class_fields, named_schema, parameters_of


class Plain(nn.Module):
    def __init__(
        self,
        width: int,
        *,
        depth: int = 2,
        name: str = "x",
        rate: float = None,  # type: ignore[assignment]  # noqa: RUF013
    ) -> None:
        super().__init__()


class Wider(Plain):
    def __init__(self, *, heads: "int" = 4, depth: int = 9, **others: Any) -> None:
        super().__init__(3, depth=depth, **others)


class Silent(Wider):
    pass


class Taking(nn.Module):
    def __init__(self, **others: Any) -> None:
        super().__init__()


class Unresolved(nn.Module):
    def __init__(self, size: "NotThere", other=3) -> None:  # type: ignore[no-untyped-def]  # noqa: F821
        super().__init__()


def valid(kind: type, **settings: Any) -> bool:
    """Whether settings fit the class."""
    schema = named_schema(class_fields(kind))
    try:
        schema.model_validate_json(json.dumps({"name": "a.B", **settings}), strict=True)
    except ValidationError:
        return False
    return True


def test_named_arguments_are_settings_but_the_one_called_name() -> None:
    fields = class_fields(Plain)
    assert fields.keys() == {"width", "depth", "rate"}
    assert fields["depth"] == (int, 2)
    assert fields["width"] == (int, ...)
    assert class_fields(Plain, exclude=("width",)).keys() == {"depth", "rate"}


def test_values_are_checked_against_the_annotations() -> None:
    assert valid(Plain, width=3)
    assert valid(Plain, width=3, rate=0.5)
    assert valid(Plain, width=3, rate=None)  # the default, whatever the annotation
    assert not valid(Plain)
    assert not valid(Plain, width="a")
    assert not valid(Plain, width=3.5)
    assert not valid(Plain, width=3, dpeth=1)


@pytest.mark.parametrize("kind", [Wider, Silent])
def test_further_arguments_are_those_of_the_parents_constructor(kind: type) -> None:
    named, is_open = parameters_of(kind)
    assert named.keys() == {"heads", "depth", "width", "name", "rate"}
    assert named["depth"].default == 9
    assert not is_open
    assert not valid(kind, width=3, haeds=1)


@pytest.mark.parametrize("kind", [Taking, WandbLogger])
def test_a_class_may_take_any_argument(kind: type) -> None:
    assert OPEN in class_fields(kind)
    assert valid(kind, anything=1)


def test_a_class_without_a_constructor_has_no_settings() -> None:
    assert class_fields(type("Bare", (), {})) == {}


def test_an_annotation_that_cannot_be_resolved_allows_any_value() -> None:
    assert valid(Unresolved, size=[1, 2], other="x")
    assert not valid(Unresolved)


def test_names_imported_for_type_checkers_alone_hide_no_other_annotation() -> None:
    fields = class_fields(CyclicLR)
    assert fields["step_size_up"][0] is int
    assert set(fields) == set(inspect.signature(CyclicLR).parameters)
