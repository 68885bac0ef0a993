"""What predictions are worth: probabilities (N, C) and labels (N,) in, numbers out.

scores = score(probabilities, labels, CLASS_NAMES)
scores.accuracy, scores.interval, scores.confusions[0]
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from fashion_lit.metrics import ClassScores, class_scores, confusion_matrix

NUM_BINS = 15  # of confidence, for calibration: Guo et al. 2017
Z_95 = 1.959964  # of the normal distribution, 97.5 %
# Of Student's distribution, 97.5 %, for 1 to 10 degrees of freedom; for more, the last errs on the
# side of caution.
STUDENT_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Confusion(NamedTuple):
    """How often two classes are taken for each other, counts of images."""

    first: str
    second: str
    first_as_second: int
    second_as_first: int


class Bin(NamedTuple):
    """The images whose confidence lies in one of NUM_BINS equal bins; means in [0, 1]."""

    confidence: float
    accuracy: float
    num_images: int


@dataclass(frozen=True)
class Scores:
    """Everything a report says of one split.

    Args:
        num_images: N.
        accuracy: in [0, 1].
        interval: its 95 % interval, Wilson's.
        classes: per class.
        confusion: counts (C, C), true classes in rows.
        log_loss: mean negative log-likelihood of the true class, in nats.
        calibration_error: expected, in [0, 1], NUM_BINS bins.
        mean_confidence: mean of each image's largest probability.
        bins: of confidence, those that hold images.
        confusions: pairs of classes, the most frequent first; none that never happens.
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

    @property
    def present(self) -> Tensor:
        """Which classes have true images: (C,) bool."""
        return self.classes.support > 0

    def averages(self, kind: str) -> tuple[float, float, float]:
        """Return precision, recall and F1, averaged over classes: "macro", or "weighted"."""
        columns = torch.stack([self.classes.precision, self.classes.recall, self.classes.f1])
        if kind == "macro":
            averages = columns.mean(1)
        else:
            averages = (columns * self.classes.support.double()).sum(1) / self.num_images
        precision, recall, f1 = averages.tolist()
        return precision, recall, f1


def score(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> Scores:
    """Score predictions: probabilities (N, C) that add up to 1, labels (N,) int64."""
    probabilities = probabilities.double()
    confidence, predicted = probabilities.max(1)
    num_classes = len(class_names)
    confusion = confusion_matrix(predicted, labels, num_classes)
    correct = predicted == labels
    num_images = len(labels)
    error = multiclass_calibration_error(
        probabilities, labels, num_classes=num_classes, n_bins=NUM_BINS, norm="l1"
    )
    # Of a probability that rounds to 0 the logarithm would be infinite.
    tiny = torch.finfo(torch.float32).tiny
    likelihood = probabilities.gather(1, labels[:, None]).clamp(min=tiny)
    return Scores(
        num_images=num_images,
        accuracy=float(correct.double().mean()),
        interval=wilson_interval(int(correct.sum()), num_images),
        classes=class_scores(confusion),
        confusion=confusion,
        log_loss=float(-likelihood.log().mean()),
        calibration_error=float(error),
        mean_confidence=float(confidence.mean()),
        bins=confidence_bins(confidence, correct),
        confusions=confused_pairs(confusion, class_names),
    )


def wilson_interval(num_hits: int, num_trials: int, z: float = Z_95) -> tuple[float, float]:
    """Return the interval of a share, Wilson 1927: it stays in [0, 1] and fits 0 and 1 too."""
    share = num_hits / num_trials
    center = share + z * z / (2 * num_trials)
    half = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    scale = 1 + z * z / num_trials
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two or more values, Student 1908."""
    quantile = STUDENT_QUANTILES[min(len(values), len(STUDENT_QUANTILES) + 1) - 2]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def confidence_bins(confidence: Tensor, correct: Tensor) -> list[Bin]:
    """Group images by confidence (N,) into equal bins: a reliability diagram's points."""
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


def confused_pairs(confusion: Tensor, class_names: Sequence[str]) -> list[Confusion]:
    """List the pairs of classes that are taken for each other, the most frequent first.

    The class that is mistaken more often comes first in its pair.
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
    """Return the share of images kept, (N,), and the accuracy on them, the surest first."""
    hits = correct[confidence.argsort(descending=True, stable=True)].double().cumsum(0)
    kept = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    return kept / len(hits), hits / kept


def mcnemar(num_only_first: int, num_only_second: int) -> float:
    """Return the p-value of two classifiers being equally good, exact: McNemar 1947.

    Args:
        num_only_first: images that only the first gets right.
        num_only_second: images that only the second gets right.
    """
    total = num_only_first + num_only_second
    fewer = min(num_only_first, num_only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)  # whole numbers until here: exact for any size
