"""Score predictions, given as probabilities (N, C) and labels (N,).

scores = score(probabilities, labels, class_names)
scores.accuracy, scores.interval, scores.confusions[0]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fashion_lit.evaluation.metrics import ClassScores, class_scores, confusion_matrix
from fashion_lit.evaluation.statistics import wilson_interval

NUM_BINS = 15  # of confidence, for the calibration error: Guo et al. 2017


class Confusion(NamedTuple):
    """How often two classes are confused with each other, in images."""

    first: str
    second: str
    first_as_second: int
    second_as_first: int


class Bin(NamedTuple):
    """One of NUM_BINS confidence bins of equal width: mean confidence, accuracy, both in [0, 1]."""

    confidence: float
    accuracy: float
    num_images: int


@dataclass(frozen=True)
class Scores:
    """All scores of one split.

    Args:
        num_images: number of images, N.
        accuracy: in [0, 1].
        interval: 95 % Wilson interval of the accuracy.
        classes: per-class scores.
        confusion: counts (C, C), true classes in rows.
        log_loss: mean negative log-likelihood of the true class, in nats.
        calibration_error: expected calibration error in [0, 1], over NUM_BINS bins.
        mean_confidence: mean of each image's largest probability.
        bins: non-empty confidence bins.
        confusions: pairs of classes that are confused at least once, the most frequent first.
        class_names: C names, in the order of the labels.
    """

    num_images: int
    accuracy: float
    interval: tuple[float, float]
    classes: ClassScores
    confusion: Tensor
    log_loss: float
    calibration_error: float
    mean_confidence: float
    bins: Sequence[Bin]
    confusions: Sequence[Confusion]
    class_names: Sequence[str]

    @property
    def present(self) -> Tensor:
        """Whether each class has images in the split: (C,) bool."""
        return self.classes.support > 0


def score(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> Scores:
    """Score predictions: probabilities (N, C) with rows that sum to 1, labels (N,) int64."""
    probabilities = probabilities.double()
    confidence, predicted = probabilities.max(1)
    num_classes = len(class_names)
    confusion = confusion_matrix(predicted, labels, num_classes)
    correct = predicted == labels
    num_images = len(labels)
    bins = confidence_bins(confidence, correct)
    # A probability that underflows to 0 would have an infinite loss.
    tiny = torch.finfo(torch.float32).tiny
    likelihood = probabilities.gather(1, labels[:, None]).clamp(min=tiny)
    return Scores(
        num_images=num_images,
        accuracy=float(correct.double().mean()),
        interval=wilson_interval(int(correct.sum()), num_images),
        classes=class_scores(confusion),
        confusion=confusion,
        log_loss=float(-likelihood.log().mean()),
        calibration_error=calibration_error(bins),
        mean_confidence=float(confidence.mean()),
        bins=bins,
        confusions=confused_pairs(confusion, class_names),
        class_names=tuple(class_names),
    )


def confidence_bins(confidence: Tensor, correct: Tensor) -> list[Bin]:
    """Group images by confidence into bins of equal width, the points of a reliability diagram.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
    """
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)
    places = torch.bucketize(confidence, edges[1:-1])
    bins = []
    for place in range(NUM_BINS):
        members = places == place
        if num_images := int(members.sum()):
            mean_confidence, share = (
                float(v[members].double().mean()) for v in (confidence, correct)
            )
            bins.append(Bin(mean_confidence, share, num_images))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error in [0, 1], Naeini et al. 2015."""
    gaps = (b.num_images * abs(b.accuracy - b.confidence) for b in bins)
    return sum(gaps) / sum(b.num_images for b in bins)


def confused_pairs(confusion: Tensor, class_names: Sequence[str]) -> list[Confusion]:
    """List the pairs of classes that are confused with each other, the most frequent first.

    The first class of a pair is the one that is more often predicted as the other.
    """
    counts = confusion.long().tolist()
    pairs = []
    for i in range(len(class_names)):
        for j in range(i + 1, len(class_names)):
            a, b = (i, j) if counts[i][j] >= counts[j][i] else (j, i)
            if counts[a][b]:
                pairs.append(Confusion(class_names[a], class_names[b], counts[a][b], counts[b][a]))
    return sorted(pairs, key=lambda p: -(p.first_as_second + p.second_as_first))


def coverage_curve(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of images kept and the accuracy on them, (N,) float64 each.

    Images are kept in order of decreasing confidence; entry i is for the i + 1 most confident ones.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
    """
    hits = correct[confidence.argsort(descending=True, stable=True)].double().cumsum(0)
    kept = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    return kept / len(hits), hits / kept
