import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import precision_recall_fscore_support
from torch import nn
from torch.nn import functional as F

from fashion_lit.data.randomness import generator
from fashion_lit.evaluation.metrics import ClassificationMetrics, class_scores, confusion_matrix


@pytest.fixture
def random_predictions() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(1000, 10, generator=generator(0))
    labels = torch.randint(0, 10, (1000,), generator=generator(1))
    return logits, labels


def test_class_scores_match_scikit_learn(
    random_predictions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = random_predictions
    predicted = logits.argmax(1)
    confusion = confusion_matrix(predicted, labels, 10)
    assert np.array_equal(confusion.numpy(), sklearn_confusion_matrix(labels, predicted))
    expected = precision_recall_fscore_support(labels, predicted)
    for ours, theirs in zip(class_scores(confusion), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)


def test_class_scores_are_zero_for_absent_and_never_predicted_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 0, 2])
    scores = class_scores(confusion_matrix(predicted, labels, 4))
    expected = precision_recall_fscore_support(
        labels, predicted, labels=[0, 1, 2, 3], zero_division=0
    )
    for ours, theirs in zip(scores, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)


def test_confusion_matrix_counts_exactly_under_autocast() -> None:
    labels = torch.zeros(1001, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):  # bf16 rounds 1001 to 1000
        assert confusion_matrix(labels, labels, 2)[0, 0] == 1001


def test_metrics_over_uneven_batches_equal_the_whole(
    random_predictions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = random_predictions
    metrics = ClassificationMetrics(10)
    for batch in (slice(0, 7), slice(7, 600), slice(600, 1000)):
        loss = F.cross_entropy(logits[batch], labels[batch])
        metrics.update(logits[batch], labels[batch], loss)
    totals = metrics.compute()
    assert float(totals["loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert float(totals["accuracy"]) == pytest.approx(
        float((logits.argmax(1) == labels).double().mean())
    )
    metrics.reset()
    assert metrics.confusion.sum() == 0


def test_counts_are_exact_in_a_bf16_classifier() -> None:
    metrics = nn.Sequential(ClassificationMetrics(10)).to(torch.bfloat16)[0]
    assert isinstance(metrics, ClassificationMetrics)
    metrics.reset()
    labels = torch.zeros(301, dtype=torch.int64)  # bf16 has 300 and 302, but not 301
    metrics.update(nn.functional.one_hot(labels, 10).bfloat16(), labels, torch.tensor(1.0))
    totals = metrics.compute()
    assert totals["confusion"][0, 0] == 301
    assert totals["accuracy"] == totals["loss"] == 1


@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 11.0)])
def test_mixed_labels_count_as_the_class_of_the_larger_share(
    weights: torch.Tensor | None, random_predictions: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, labels = random_predictions
    shares = 0.6 * F.one_hot(labels, 10) + 0.4 * F.one_hot(labels.roll(1), 10)
    mixed, plain = ClassificationMetrics(10, weights), ClassificationMetrics(10, weights)
    for batch, loss in ((slice(0, 300), 2.0), (slice(300, 1000), 1.0)):
        mixed.update(logits[batch], shares[batch], torch.tensor(loss))
        plain.update(logits[batch], labels[batch], torch.tensor(loss))
    for key, value in plain.compute().items():
        assert torch.equal(mixed.compute()[key], value), key
