"""Metrics of one split, accumulated in two tensors: a confusion matrix and a loss sum.

`update` costs a few small operations per step and never synchronises with the device; accuracy and
per-class precision, recall and F1 are computed from the confusion matrix at the end of an epoch.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count (true class, predicted class) pairs: (N,), (N,) int64 -> (C, C) float32.

    Counts are exact up to 2**24 images, in any order of summation on a GPU. Unlike
    `torch.bincount`, this does not synchronise the GPU with the CPU.
    """
    counts = torch.zeros(num_classes, num_classes, device=labels.device)
    add_confusions(counts, predicted, labels)
    return counts


def add_confusions(counts: Tensor, predicted: Tensor, labels: Tensor) -> None:
    """Add (true class, predicted class) pairs, (N,) int64 each, to `counts` (C, C), in place."""
    pairs = torch.add(predicted, labels, alpha=len(counts))
    counts.view(-1).index_add_(0, pairs, torch.ones_like(pairs, dtype=counts.dtype))


class ClassScores(NamedTuple):
    """Per-class scores, (C,) float64 in [0, 1] each, and support, (C,) int64 counts of images."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    def average(self, kind: Literal["macro", "weighted"]) -> tuple[float, float, float]:
        """Return mean precision, recall and F1 over classes, unweighted or weighted by support."""
        columns = torch.stack([self.precision, self.recall, self.f1])
        if kind == "macro":
            averages = columns.mean(1)
        else:
            averages = (columns * self.support.double()).sum(1) / self.support.sum()
        precision, recall, f1 = averages.tolist()
        return precision, recall, f1


def class_scores(confusion: Tensor) -> ClassScores:
    """Compute per-class scores of a confusion matrix (C, C) of counts, true classes in rows.

    A score of 0 / 0 (for a class that is absent or never predicted) is 0, as in scikit-learn.
    """
    confusion = confusion.double()
    hits, predicted, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    return ClassScores(
        precision=hits / predicted.clamp(min=1),
        recall=hits / support.clamp(min=1),
        f1=2 * hits / (predicted + support).clamp(min=1),
        support=support.long(),
    )


class ClassificationMetrics(Metric):
    """Accumulate the confusion matrix and the loss over an epoch; `compute` sums over all ranks.

    Args:
        num_classes: number of classes, C.
        class_weights: weights (C,) of the loss, or None for equal ones. A mean loss is the sum of
            weighted losses over the sum of weights, so it does not depend on the batch size.
    """

    full_state_update = False
    confusion: Tensor
    loss_sum: Tensor
    class_weights: Tensor | None

    def __init__(self, num_classes: int, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.add_state("confusion", torch.zeros(num_classes, num_classes), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros(()), dist_reduce_fx="sum")

    def reset(self) -> None:
        """Reset to zero in float32, also in a bf16 classifier, because counts must be exact."""
        super().reset()
        self.set_dtype(torch.float32)

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: logits (B, C), labels (B,) int64 and the batch's mean loss ().

        Labels of mixed images, shares of classes (B, C), count as the class of the largest share,
        also for the weight of the batch's loss in the epoch's.
        """
        if labels.ndim == 2:
            labels = labels.argmax(1)
        # In place, because assigning a module's attribute takes longer than the addition.
        add_confusions(self.confusion, logits.argmax(1), labels)
        if self.class_weights is None:
            self.loss_sum.add_(loss.detach(), alpha=len(labels))
        else:
            self.loss_sum.add_(loss.detach() * self.class_weights[labels].sum())

    def compute(self) -> dict[str, Tensor]:
        """Return "loss" (), "accuracy" () in [0, 1] and "confusion" (C, C) of counts."""
        num_images = total_weight = self.confusion.sum()
        if self.class_weights is not None:
            total_weight = self.confusion.sum(1) @ self.class_weights.to(self.confusion)
        return {
            "loss": self.loss_sum / total_weight,
            "accuracy": self.confusion.trace() / num_images,
            "confusion": self.confusion,
        }

    def totals(self) -> dict[str, Tensor]:
        """Return this rank's totals so far: "confusion" (C, C) and "loss_sum" ()."""
        return {"confusion": self.confusion, "loss_sum": self.loss_sum}

    def restore(self, totals: Mapping[str, Tensor]) -> None:
        """Continue from the `totals` of an earlier process."""
        self.reset()
        nothing = self.confusion.new_zeros(0, len(self.confusion))
        # One update, of no images: else `compute` warns that there was none.
        self.update(nothing, nothing.argmax(1), self.loss_sum)
        self.confusion.copy_(totals["confusion"])
        self.loss_sum.copy_(totals["loss_sum"])
