"""Names of classes, and epochs that draw a class more often."""

import pytest
import torch

from fashion_lit.data.classes import (
    check_class_names,
    class_quotas,
    class_tags,
    epoch_order,
    names_in_order,
    place_of,
    weights_in_order,
)
from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.errors import UserError

LABELS = torch.arange(1000) % 10
SHIRT = weights_in_order({"Shirt": 1.5}, CLASS_NAMES)


def test_names_differ_in_more_than_spaces_at_their_ends() -> None:
    with pytest.raises(UserError, match="without spaces at the ends of their names, but got 'a '"):
        check_class_names(["a", "a "], "Squares")


def test_names_are_those_of_the_data_set_in_its_order() -> None:
    assert names_in_order(["ankle_boot", "Shirt", "T-shirt/top", "shirt"], CLASS_NAMES) == [
        "T-shirt/top",
        "Shirt",
        "Ankle boot",
    ]
    assert names_in_order(None, CLASS_NAMES) is None
    for wrong in ([], ["Shrt"], "Shirt", 3, [3], [None]):
        with pytest.raises(ValueError, match=r"null or a list of classes \(T-shirt/top, "):
            names_in_order(wrong, CLASS_NAMES)


def test_letters_and_digits_tell_classes_apart_and_else_the_whole_name() -> None:
    digits = ["0", "1", "10"]
    assert weights_in_order({"10": 2, "0": 3}, digits) == [3, 1.0, 2]
    assert names_in_order([1, 0], digits) == ["0", "1"]
    signs = ["+", "-", "-1", "1", "A", "a", "Bär", "C++"]
    for place, name in enumerate(signs):
        assert place_of(name, signs) == place
    assert place_of("bar", signs) == 6
    assert place_of("c", signs) == 7
    assert place_of("*", signs) is None  # of two that have no letters
    assert place_of("+1", signs) is None  # either of two


def test_tags_hold_no_slash_and_no_space() -> None:
    assert class_tags(CLASS_NAMES)[0] == "T-shirt_top"
    assert class_tags(["a/b c", "d\\e", "あ"]) == ("a_b_c", "d_e", "あ")


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0] * 11])
def test_a_list_of_weights_has_one_for_each_class(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="a list of 10 values, one for each class"):
        weights_in_order(weights, CLASS_NAMES)


def test_an_epoch_keeps_its_length_and_draws_a_class_more_often() -> None:
    quotas = class_quotas(LABELS, SHIRT)
    assert sum(quotas) == 1000
    assert quotas[6] == 143  # 1000 x 1.5 / 10.5
    assert {*quotas[:6], *quotas[7:]} <= {95, 96}
    order = epoch_order(LABELS, SHIRT, generator(0))
    assert LABELS[order].bincount().tolist() == quotas
    draws = order.bincount(minlength=1000)
    assert set(draws[LABELS == 6].tolist()) == {1, 2}  # every Shirt at least once
    assert set(draws[LABELS != 6].tolist()) == {0, 1}
    assert (LABELS[order[:500]] == 6).sum() < 100  # the order is random


def test_an_epochs_order_depends_on_its_generator_alone() -> None:
    first, again, other = (epoch_order(LABELS, SHIRT, generator(key)) for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort().values, other.sort().values)  # other Shirts are repeated


@pytest.mark.parametrize("weights", [None, [2.0] * 10])
def test_equal_weights_draw_every_image_once(weights: list[float] | None) -> None:
    order = epoch_order(LABELS, weights, generator(0))
    assert torch.equal(order.sort().values, torch.arange(1000))


def test_extreme_weights_and_missing_classes_keep_the_length() -> None:
    few = torch.tensor([0, 0, 0, 6, 7])
    many = [weights_in_order({name: 1e6}, CLASS_NAMES) for name in ("Shirt", "Coat")]
    for weights in (*many, SHIRT):
        order = epoch_order(few, weights, generator(0))
        assert len(order) == 5
        assert few[order].bincount(minlength=10).tolist() == class_quotas(few, weights)
