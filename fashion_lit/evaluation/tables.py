"""Tables of scores, as text, CSV, rows and a flat dict; the confusion matrix as a figure."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES, CLASS_TAGS
from fashion_lit.evaluation.metrics import class_scores
from fashion_lit.evaluation.narrative import percent
from fashion_lit.evaluation.reference import Reference
from fashion_lit.evaluation.scores import Scores

AVERAGES: tuple[Literal["macro", "weighted"], ...] = ("macro", "weighted")
UNKNOWN = "–"
SCORE_HEADS = ("accuracy", "95 % interval", "macro F1", "log-loss", "calibration error")
DIAGONAL = "#d9d9d9"  # light grey, in the confusion matrix
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601


def classification_report(confusion: Tensor, class_names: Sequence[str], *, digits: int = 3) -> str:
    """Return precision, recall, F1 and support in the format of scikit-learn's function.

    Both course reports print this table.

    Args:
        confusion: counts (C, C), true classes in rows.
        class_names: C names.
        digits: number of decimals of precision, recall and F1.
    """
    scores = class_scores(confusion)
    columns = (scores.precision, scores.recall, scores.f1)
    num_images = int(scores.support.sum())
    accuracy = float(confusion.double().trace() / num_images)
    width = max(len("weighted avg"), *(len(name) for name in class_names))

    def row(name: str, values: Sequence[float], support: int) -> str:
        cells = "".join(f" {value:>9.{digits}f}" for value in values)
        return f"{name:>{width}} {cells} {support:>9}\n"

    head = f"{'':>{width}} " + "".join(
        f" {name:>9}" for name in ("precision", "recall", "f1-score", "support")
    )
    text = head + "\n\n"
    for index, name in enumerate(class_names):
        text += row(name, [float(c[index]) for c in columns], int(scores.support[index]))
    text += f"\n{'accuracy':>{width}} {'':>10}{'':>10} {accuracy:>9.{digits}f} {num_images:>9}\n"
    text += row("macro avg", scores.average("macro"), num_images)
    text += row("weighted avg", scores.average("weighted"), num_images)
    return text


def flat_metrics(scores: Scores, split: str) -> dict[str, float]:
    """Return a split's scores by name, such as "test/f1/Shirt", as in a run's metrics.json."""
    numbers: dict[str, float] = {
        "accuracy": scores.accuracy,
        "accuracy_low": scores.interval[0],
        "accuracy_high": scores.interval[1],
        "log_loss": scores.log_loss,
        "calibration_error": scores.calibration_error,
        "mean_confidence": scores.mean_confidence,
    }
    for kind in AVERAGES:
        averages = scores.classes.average(kind)
        for name, value in zip(("precision", "recall", "f1"), averages, strict=True):
            numbers[f"{kind}_{name}"] = value
    for i, tag in enumerate(CLASS_TAGS):
        for column in ("precision", "recall", "f1"):
            if bool(scores.present[i]):
                numbers[f"{column}/{tag}"] = float(getattr(scores.classes, column)[i])
    return {f"{split}/{key}": value for key, value in numbers.items()}


def class_table(scores: Scores) -> str:
    """Return per-class scores as CSV in full precision, empty for classes without images."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", "precision", "recall", "f1", "support"])
    for i, name in enumerate(CLASS_NAMES):
        columns = (scores.classes.precision, scores.classes.recall, scores.classes.f1)
        values = [float(c[i]) if bool(scores.present[i]) else "" for c in columns]
        writer.writerow([name, *values, int(scores.classes.support[i])])
    for kind in AVERAGES:
        writer.writerow([f"{kind} avg", *scores.classes.average(kind), scores.num_images])
    return buffer.getvalue()


def macro_f1(scores: Scores) -> str:
    """Format macro F1, or return UNKNOWN if a class has no images."""
    return f"{scores.classes.average('macro')[2]:.3f}" if bool(scores.present.all()) else UNKNOWN


def score_cells(scores: Scores) -> list[str]:
    """Return the cells of SCORE_HEADS for one model and split."""
    return [
        percent(scores.accuracy),
        " to ".join(f"{100 * end:.2f}" for end in scores.interval),
        macro_f1(scores),
        f"{scores.log_loss:.4f}",
        percent(scores.calibration_error),
    ]


def class_rows(scores: Scores, references: Sequence[Reference]) -> list[dict[str, Any]]:
    """Return each class's row: scores, and the course reports' F1 with the difference."""
    rows = []
    for i, name in enumerate(CLASS_NAMES):
        known = bool(scores.present[i])
        columns = (scores.classes.precision, scores.classes.recall, scores.classes.f1)
        cells = [f"{float(column[i]):.3f}" if known else UNKNOWN for column in columns]
        comparisons = []
        for reference in references:
            f1 = reference.classes[name][2]
            gap = round(float(scores.classes.f1[i]) - f1, 3)
            text = f"{'+' if gap > 0 else '−' if gap < 0 else ''}{abs(gap):.3f}"
            comparisons.append((f"{f1:.3f}", text if known else UNKNOWN))
        cells.append(f"{int(scores.classes.support[i]):,}")
        rows.append({"name": name, "cells": cells, "references": comparisons})
    return rows


def confusion_matrix_figure(confusion: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix (C, C) of counts, true classes in rows.

    Colours are the row shares of the mistakes, from none to the most frequent one. The diagonal is
    grey: on the same scale it would make all mistakes look equally pale.
    """
    counts = confusion.double().cpu()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    mistakes = shares.clone().fill_diagonal_(0)
    scale = Normalize(0, float(mistakes.max()) or 1)
    colors = colormaps["Blues"](scale(mistakes.numpy()))  # (C, C, 4): red, green, blue, alpha
    colors[range(len(counts)), range(len(counts))] = to_rgba(DIAGONAL)
    figure = Figure(figsize=(6.8, 6.4), dpi=100)
    axes = figure.add_axes((0.16, 0.14, 0.83, 0.85))  # twice as fast as a computed layout
    axes.imshow(colors)
    for row in range(len(class_names)):
        for column in range(len(class_names)):
            color = "white" if colors[row, column, :3] @ LUMINANCE < 0.45 else "black"
            text = f"{int(counts[row, column])}"
            share = float(shares[row, column])
            if share:
                text += f"\n{100 * share:.0f} %" if share >= 0.01 else "\n< 1 %"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(class_names)), class_names, rotation=40, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
