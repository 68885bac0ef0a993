"""Tables of scores, as text, CSV, rows and a flat dict; the confusion matrix as a figure."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from fashion_lit.data.classes import class_tags
from fashion_lit.evaluation.figures import drawn_names
from fashion_lit.evaluation.metrics import class_scores
from fashion_lit.evaluation.narrative import percent
from fashion_lit.evaluation.reference import Reference
from fashion_lit.evaluation.scores import Scores
from fashion_lit.text import one_line, shorten

AVERAGES: tuple[Literal["macro", "weighted"], ...] = ("macro", "weighted")
UNKNOWN = "–"
SCORE_HEADS = ("accuracy", "95 % interval", "macro F1", "log-loss", "calibration error")
DIAGONAL = "#d9d9d9"  # light grey, in the confusion matrix
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
MAX_ROWS, NUM_WORST = 50, 10  # of a table on the screen; with more classes it has the worst ones
MAX_NAME = 40  # characters of a class in a table of text
NUMBERED, MAX_TICKS = 12, 100  # classes of a confusion matrix with numbers; and of named ones
NAME_SIZE = 11  # characters of a class that the margins of the matrix have room for


def classification_report(
    confusion: Tensor, class_names: Sequence[str], *, digits: int = 3, max_rows: int | None = None
) -> str:
    """Return precision, recall, F1 and support in the format of scikit-learn's function.

    Both course reports print this table.

    Args:
        confusion: counts (C, C), true classes in rows.
        class_names: C names.
        digits: number of decimals of precision, recall and F1.
        max_rows: with more classes, only the NUM_WORST ones with the lowest F1 are listed; None:
            all are.
    """
    scores = class_scores(confusion)
    columns = (scores.precision, scores.recall, scores.f1)
    num_images = int(scores.support.sum())
    accuracy = float(confusion.double().trace() / num_images)
    names = [shorten(one_line(name), MAX_NAME) for name in class_names]
    chosen = range(len(names))
    if max_rows is not None and len(names) > max_rows:
        chosen = scores.f1.argsort(stable=True)[:NUM_WORST].tolist()
    width = max(len("weighted avg"), *(len(names[index]) for index in chosen))

    def row(name: str, values: Sequence[float], support: int) -> str:
        cells = "".join(f" {value:>9.{digits}f}" for value in values)
        return f"{name:>{width}} {cells} {support:>9}\n"

    head = f"{'':>{width}} " + "".join(
        f" {name:>9}" for name in ("precision", "recall", "f1-score", "support")
    )
    text = head + "\n\n"
    for index in chosen:
        text += row(names[index], [float(c[index]) for c in columns], int(scores.support[index]))
    if len(chosen) < len(names):
        text += f"{'…':>{width}}  {len(names) - len(chosen):,} classes with a higher F1\n"
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
    for i, tag in enumerate(class_tags(scores.class_names)):
        for column in ("precision", "recall", "f1"):
            if bool(scores.present[i]):
                numbers[f"{column}/{tag}"] = float(getattr(scores.classes, column)[i])
    return {f"{split}/{key}": value for key, value in numbers.items()}


def class_table(scores: Scores) -> str:
    """Return per-class scores as CSV in full precision, empty for classes without images."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", "precision", "recall", "f1", "support"])
    for i, name in enumerate(scores.class_names):
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
    """Return each class's row: scores, and the course reports' F1 with the difference.

    A name that figures cannot show is followed by what they show instead.
    """
    rows = []
    drawn = drawn_names(scores.class_names)
    for i, name in enumerate(scores.class_names):
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
        number = f"#{i}"
        shown = f"{name} ({number} in figures)" if drawn[i] == number != name else name
        rows.append({"name": shown, "cells": cells, "references": comparisons})
    return rows


def confusion_matrix_figure(confusion: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix (C, C) of counts, true classes in rows.

    Colours are the row shares of the mistakes, from none to the most frequent one. The diagonal is
    grey: on the same scale it would make all mistakes look equally pale. Numbers are written into
    the cells of at most NUMBERED classes.
    """
    counts = confusion.double().cpu()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    mistakes = shares.clone().fill_diagonal_(0)
    scale = Normalize(0, float(mistakes.max()) or 1)
    colors = colormaps["Blues"](scale(mistakes.numpy()))  # (C, C, 4): red, green, blue, alpha
    colors[range(len(counts)), range(len(counts))] = to_rgba(DIAGONAL)
    figure, axes = _matrix_axes(drawn_names(class_names))
    axes.imshow(colors)
    cells = range(len(counts)) if len(counts) <= NUMBERED else ()
    for row in cells:
        for column in cells:
            color = "white" if colors[row, column, :3] @ LUMINANCE < 0.45 else "black"
            text = f"{int(counts[row, column])}"
            share = float(shares[row, column])
            if share:
                text += f"\n{100 * share:.0f} %" if share >= 0.01 else "\n< 1 %"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figure


def _matrix_axes(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Return a figure for a matrix with these names at both axes, and its axes.

    The margins grow with the longest name and the matrix with the number of classes, of which at
    most MAX_TICKS are named.
    """
    num_classes = len(names)
    has_room = num_classes <= NUMBERED
    size = 10 if has_room else 8 if num_classes <= 50 else 6  # points
    more = 0.009 * size * max(0, max(map(len, names)) - NAME_SIZE)  # inches, of longer names
    left, bottom = 1.088 + more, 0.896 + (0.7 if has_room else 1) * more
    wider = max(0.0, min(0.16 * num_classes, 11.0) - 5.5)  # than the matrix of ten classes
    width, height = left + 5.712 + wider, bottom + 5.504 + wider
    figure = Figure(figsize=(width, height), dpi=100)
    # Twice as fast as a computed layout.
    box = (left / width, bottom / height, 1 - (left + 0.068) / width, 1 - (bottom + 0.064) / height)
    axes = figure.add_axes(box)
    step = -(-num_classes // MAX_TICKS)
    ticks, shown = range(0, num_classes, step), names[::step]
    turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if has_room else {"rotation": 90}
    axes.set_xticks(ticks, shown, fontsize=size, parse_math=False, **turned)
    axes.set_yticks(ticks, shown, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure, axes
