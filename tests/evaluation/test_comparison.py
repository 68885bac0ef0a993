"""Comparisons of constructed predictions with known results."""

import pytest
import torch

from fashion_lit.errors import UserError
from fashion_lit.evaluation.comparison import compare
from fashion_lit.evaluation.predictions import Predictions


def fake(num_right: int, num_images: int = 100, *, from_end: bool = False) -> Predictions:
    """Predictions that are correct on the first, or the last, `num_right` images."""
    predicted = torch.ones(num_images, dtype=torch.int64)
    predicted[slice(num_images - num_right, None) if from_end else slice(num_right)] = 0
    labels = torch.zeros(num_images, dtype=torch.int64)
    return Predictions(torch.eye(10)[predicted], labels, torch.zeros(num_images, 28, 28))


def test_a_large_difference_on_the_same_images_is_significant() -> None:
    comparison = compare("a", "b", {0: fake(80)}, {7: fake(90)})
    assert comparison.differences == {0: pytest.approx(0.1)}
    assert comparison.p_values[0] == pytest.approx(2 / 2**10)
    assert comparison.only_second.nonzero()[:, 0].tolist() == list(range(80, 90))
    assert not comparison.only_first.any()
    assert "0 are correct only with a and 10 only with b: +10.00 points" in comparison.text
    assert "b is significantly better than a (one run each" in comparison.text


def test_a_difference_of_similar_counts_is_not_significant() -> None:
    comparison = compare("a", "b", {0: fake(80)}, {0: fake(81, from_end=True)})
    assert "The difference between a and b is not significant" in comparison.text


def test_seeds_are_paired() -> None:
    first = {seed: fake(80 + seed) for seed in range(4)}
    second = {seed: fake(79 + seed - seed % 2) for seed in range(4)}
    comparison = compare("a", "b", first, second)
    assert "a is significantly better than b (4 paired seeds: -1.50 points" in comparison.text
    noisy = {0: fake(90), 1: fake(70), 2: fake(85), 3: fake(84)}
    assert "is not significant" in compare("a", "b", first, noisy).text
    with pytest.raises(UserError, match="Expected both models with the same seeds"):
        compare("a", "b", first, {0: fake(1), 9: fake(2)})


def test_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="Expected runs on the same images"):
        compare("a", "b", {0: fake(5)}, {0: fake(5, 90)})
