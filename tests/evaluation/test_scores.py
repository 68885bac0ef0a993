"""Scores compared with scikit-learn, with plain loops and with values computed by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn
from torch import Tensor

from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.evaluation.scores import NUM_BINS, coverage_curve, score
from fashion_lit.evaluation.statistics import mcnemar, student_interval, wilson_interval


def draw(num_images: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 10, (num_images,), generator=generator(seed, 1))
    logits = torch.randn(num_images, 10, generator=generator(seed, 2))
    logits[torch.arange(num_images), labels] += 2
    return logits.softmax(1), labels


@pytest.mark.parametrize("num_images", [60, 3000])
def test_scores_match_scikit_learn(num_images: int) -> None:
    probabilities, labels = draw(num_images)
    scores = score(probabilities, labels, CLASS_NAMES)
    predicted = probabilities.argmax(1)
    assert scores.accuracy == pytest.approx(sklearn.accuracy_score(labels, predicted))
    expected = sklearn.confusion_matrix(labels, predicted, labels=range(10))
    np.testing.assert_array_equal(scores.confusion, expected)
    by_class = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=range(10), zero_division=0
    )
    for ours, theirs in zip(scores.classes, by_class, strict=True):
        np.testing.assert_allclose(ours, theirs)
    for kind in ("macro", "weighted"):
        *averages, _ = sklearn.precision_recall_fscore_support(
            labels, predicted, labels=range(10), zero_division=0, average=kind
        )
        np.testing.assert_allclose(scores.classes.average(kind), averages)
    exact = probabilities.double() / probabilities.double().sum(1, keepdim=True)
    loss = sklearn.log_loss(labels, exact, labels=range(10))
    assert scores.log_loss == pytest.approx(loss, rel=1e-6)


def test_calibration_error_matches_a_loop_over_bins() -> None:
    probabilities, labels = draw(3000)
    scores = score(probabilities, labels, CLASS_NAMES)
    confidence, predicted = probabilities.double().max(1)
    error, points = 0.0, []
    for place in range(NUM_BINS):
        low, high = place / NUM_BINS, (place + 1) / NUM_BINS
        inside = [i for i in range(3000) if low < confidence[i] <= high]
        if inside:
            certainty = sum(float(confidence[i]) for i in inside) / len(inside)
            right = sum(int(predicted[i] == labels[i]) for i in inside) / len(inside)
            error += len(inside) / 3000 * abs(certainty - right)
            points.append((certainty, right, len(inside)))
    assert scores.calibration_error == pytest.approx(error, abs=1e-6)
    np.testing.assert_allclose(scores.bins, points)
    assert scores.mean_confidence == pytest.approx(float(confidence.mean()))


@pytest.mark.parametrize(("hits", "total"), [(81, 263), (9376, 10000), (0, 20), (20, 20), (1, 2)])
def test_interval_of_a_share_matches_scipys_wilson(hits: int, total: int) -> None:
    expected = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson_interval(hits, total), expected, atol=1e-6)


@pytest.mark.parametrize("num_values", [2, 3, 5, 11])
def test_interval_of_a_mean_matches_scipys_student(num_values: int) -> None:
    values = torch.randn(num_values, generator=generator(num_values)).double().tolist()
    expected = stats.t.interval(0.95, num_values - 1, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(student_interval(values), expected, rtol=1e-3)
    assert student_interval([0.5] * 30) == (0.5, 0.5)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)  # by hand
    for pair in ((5, 5), (5, 1), (10, 30), (100, 131), (2000, 2300)):
        assert mcnemar(*pair) == pytest.approx(stats.binomtest(pair[0], sum(pair)).pvalue)


def test_coverage_keeps_the_most_confident_first() -> None:
    confidence = torch.tensor([0.5, 0.9, 0.8, 0.6])
    kept, accuracy = coverage_curve(confidence, torch.tensor([False, True, True, False]))
    assert kept.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 0.5])


def test_confusions_come_with_both_directions_and_the_largest_first() -> None:
    labels = torch.tensor([0] * 10 + [6] * 10 + [2] * 4)
    predicted = torch.tensor([0] * 7 + [6] * 3 + [6] * 5 + [0] * 5 + [4] * 4)
    scores = score(torch.eye(10)[predicted], labels, CLASS_NAMES)
    assert [tuple(pair) for pair in scores.confusions] == [
        ("Shirt", "T-shirt/top", 5, 3),
        ("Pullover", "Coat", 4, 0),
    ]


def test_a_certain_mistake_has_a_finite_loss() -> None:
    scores = score(torch.eye(10)[[0, 1]], torch.tensor([0, 2]), CLASS_NAMES)
    assert math.isfinite(scores.log_loss)
    assert scores.log_loss > 40
