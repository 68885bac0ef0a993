"""Write an evaluation to a directory: report.html, and its tables and figures as files.

    write_evaluation(Path("runs/first/report"), evaluation)

report.html is self-contained: figures are embedded and no external resources are loaded.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from fashion_lit.evaluation.calibration import Calibration
from fashion_lit.evaluation.curves import Curve
from fashion_lit.evaluation.figures import (
    coverage_figure,
    curves_figure,
    example_grid,
    pictures_figure,
    reliability_figure,
    surest_mistakes,
)
from fashion_lit.evaluation.narrative import (
    describe,
    describe_fit,
    describe_loss,
    describe_temperature,
    keep_units,
    percent,
)
from fashion_lit.evaluation.predictions import Predictions, Split
from fashion_lit.evaluation.reference import REPORTS
from fashion_lit.evaluation.scores import Scores, coverage_curve
from fashion_lit.evaluation.tables import (
    NUMBERED,
    SCORE_HEADS,
    class_rows,
    class_table,
    classification_report,
    confusion_matrix_figure,
    flat_metrics,
    macro_f1,
    score_cells,
)
from fashion_lit.files import png, write_atomically

TEMPLATE = Path(__file__).parent / "report.html"
SPLIT_NAMES = {"val": "validation images", "test": "test images"}
NUM_PICTURES = 24
LONG_NAME = 30  # characters of a class that are more than one line of the table
OF_NUMBERS = "counts and row shares; "
# Figure sections of the page: (title, {figure name: caption}).
SECTIONS = (
    ("Confusions", {"confusion_matrix": f"{OF_NUMBERS}darker: more frequent mistakes"}),
    ("Training", {"curves": "loss, accuracy and learning rate over epochs"}),
    (
        "Confidence",
        {
            "reliability": "accuracy at each level of confidence",
            "coverage": "accuracy on the most confident share of the predictions",
        },
    ),
    ("Predictions", {"predictions": "the first correct predictions and the first mistakes"}),
    (
        "The most confident mistakes",
        {"mistakes": "true class → predicted class; some are label errors"},
    ),
)


@dataclass(frozen=True)
class Result:
    """The result of one model, or an ensemble, on one split.

    Args:
        name: name of the model.
        split: "val" or "test".
        predictions: predictions of every image of the split.
        scores: scores of the predictions.
    """

    name: str
    split: Split
    predictions: Predictions
    scores: Scores


@dataclass(frozen=True)
class RunFacts:
    """What the page says of one run, as text.

    Args:
        name: name of the run.
        facts: (what, value) pairs, such as ("Started", "2026-11-22 14:03 UTC").
        command: the command that trains such a run; "" if there is none.
        changed: (setting, value, default) of the settings that are not the default run's.
        others: (setting, value) of all others.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    command: str
    changed: Sequence[tuple[str, str, str]]
    others: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Evaluation:
    """The content of an evaluation page.

    Args:
        title: title of the page.
        subtitle: description of the model.
        main: result that the page describes in detail.
        results: all results, including those of an ensemble's members.
        calibration: the main result's calibration, fitted on validation images, or a sentence on
            why there is none.
        notices: warnings at the top of the page.
        curves: training curves by TensorBoard tag; {} for an ensemble.
        num_epochs: number of epochs at the last step of the curves.
        label_smoothing: of the losses in the curves.
        is_weighted: whether classes have weights in these losses.
        weights: of an ensemble's members, by their names in `results`; {} if all are equal.
        weighing: sentences on where the weights come from.
        runs: the run, or the members of an ensemble.
        command: the command that wrote the page.
        with_references: compare with the course reports, which used the real test set.
    """

    title: str
    subtitle: str
    main: Result
    results: Sequence[Result]
    calibration: Calibration | str
    notices: Sequence[str] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    num_epochs: float = 1
    label_smoothing: float = 0.0
    is_weighted: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    weighing: str = ""
    runs: Sequence[RunFacts] = ()
    command: str = ""
    with_references: bool = False


def write_evaluation(output: Path, evaluation: Evaluation) -> None:
    """Write all files of an evaluation to `output`, which is created if missing."""
    output.mkdir(parents=True, exist_ok=True)
    scores = evaluation.main.scores
    table = classification_report(scores.confusion, scores.class_names)
    write_atomically(output / "classification_report.txt", table)
    write_atomically(output / "classification_report.csv", class_table(scores))
    metrics = {f"weight/{name}": weight for name, weight in evaluation.weights.items()}
    for result in evaluation.results:  # the main model's metrics have no prefix
        prefix = "" if result.name == evaluation.main.name else f"{result.name}/"
        numbers = flat_metrics(result.scores, result.split)
        metrics |= {prefix + key: value for key, value in numbers.items()}
    if isinstance(evaluation.calibration, Calibration):
        temperature, after = evaluation.calibration.temperature, evaluation.calibration.scores
        metrics["temperature"] = temperature
        for key in ("log_loss", "calibration_error"):
            metrics[f"{evaluation.main.split}/calibrated_{key}"] = getattr(after, key)
    write_atomically(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    figures = {name: png(figure) for name, figure in draw(evaluation).items()}
    for name, data in figures.items():
        write_atomically(output / f"{name}.png", data)
    write_atomically(output / "report.html", page(evaluation, figures))


def draw(evaluation: Evaluation) -> dict[str, Figure]:
    """Draw the figures; return them by file name without suffix."""
    predictions, scores = evaluation.main.predictions, evaluation.main.scores
    labels, probabilities = predictions.labels, predictions.probabilities
    figures = {"confusion_matrix": confusion_matrix_figure(scores.confusion, scores.class_names)}
    if evaluation.curves:
        figures["curves"] = curves_figure(evaluation.curves, evaluation.num_epochs)
    chosen = {
        "predictions": example_grid(predictions.predicted, labels, NUM_PICTURES),
        "mistakes": surest_mistakes(probabilities, labels, NUM_PICTURES),
    }
    for name, indices in chosen.items():
        if len(indices):
            shown = (predictions.images[indices], labels[indices], probabilities[indices])
            figures[name] = pictures_figure(*shown, scores.class_names)
    calibration = evaluation.calibration
    calibrated = calibration.scores.bins if isinstance(calibration, Calibration) else ()
    figures["reliability"] = reliability_figure(scores.bins, calibrated)
    kept, accuracy = coverage_curve(predictions.confidence, predictions.correct)
    figures["coverage"] = coverage_figure(kept, accuracy)
    return figures


def page(evaluation: Evaluation, figures: Mapping[str, bytes]) -> str:
    """Render the HTML page; `figures` are PNG files by name."""
    main = evaluation.main
    references = REPORTS if evaluation.with_references and main.split == "test" else ()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    environment.filters["units"] = keep_units
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=evaluation.title,
        subtitle=evaluation.subtitle,
        notices=evaluation.notices,
        numbers=headline(main),
        sentences=sentences(evaluation),
        rows=result_table(evaluation),
        split_name=SPLIT_NAMES[main.split],
        classes=class_rows(main.scores, references),
        reference_names=[reference.name for reference in references],
        reference_notes="; ".join(f"{r.name}: {r.protocol}" for r in references),
        has_long_names=max(map(len, main.scores.class_names)) > LONG_NAME,
        figures=figure_sections(figures, has_numbers=len(main.scores.class_names) <= NUMBERED),
        runs=evaluation.runs,
        command=evaluation.command,
    )


def figure_sections(figures: Mapping[str, bytes], *, has_numbers: bool) -> list[dict[str, Any]]:
    """Return the non-empty figure sections, with each figure as base64.

    Args:
        figures: PNG files by name.
        has_numbers: whether there are numbers in the confusion matrix.
    """
    sections = []
    for title, captions in SECTIONS:
        parts = [
            {
                "caption": caption if has_numbers else caption.removeprefix(OF_NUMBERS),
                "data": base64.b64encode(figures[name]).decode(),
                "wide": len(captions) == 1,  # scrolls horizontally on a narrow screen
            }
            for name, caption in captions.items()
            if name in figures
        ]
        if parts:
            sections.append({"title": title, "parts": parts})
    return sections


def sentences(evaluation: Evaluation) -> list[str]:
    """Return the summary of the page, one sentence per item."""
    main = evaluation.main
    summary = describe(main.scores, main.split)
    summary[1:1] = [evaluation.weighing] if evaluation.weighing else []
    if isinstance(evaluation.calibration, Calibration):
        summary.append(describe_temperature(main.scores, evaluation.calibration, main.split))
    else:
        summary.append(evaluation.calibration)
    if fit := describe_fit(evaluation.curves):
        summary.append(fit)
    smoothing, num_classes = evaluation.label_smoothing, len(main.scores.class_names)
    loss = describe_loss(smoothing, is_weighted=evaluation.is_weighted, num_classes=num_classes)
    if evaluation.curves and loss:
        summary.append(loss)
    kept, accuracy = coverage_curve(main.predictions.confidence, main.predictions.correct)
    last = max(0, round(0.9 * len(kept)) - 1)
    most_confident = percent(float(accuracy[last]))
    summary.append(f"On the most confident 90 % of the images, accuracy is {most_confident}.")
    if evaluation.with_references and main.split == "test":
        for reference in REPORTS:
            gap = 100 * (main.scores.accuracy - reference.accuracy)
            relation = "above" if gap >= 0 else "below"
            summary.append(
                f"Accuracy is {abs(gap):.2f} points {relation} {reference.name}'s "
                f"{percent(reference.accuracy)} ({reference.protocol})."
            )
    return summary


def headline(result: Result) -> list[tuple[str, str]]:
    """Return the headline numbers of the page as (name, value) pairs."""
    scores = result.scores
    return [
        (f"accuracy, {SPLIT_NAMES[result.split]}", percent(scores.accuracy)),
        ("95 % interval", score_cells(scores)[1]),
        ("macro F1", macro_f1(scores)),
        ("calibration error", percent(scores.calibration_error)),
    ]


def result_table(evaluation: Evaluation) -> list[list[str]]:
    """Return the table of models and splits, its head first."""
    rows = [["model", "split", *SCORE_HEADS]]
    rows += [
        [result.name, SPLIT_NAMES[result.split], *score_cells(result.scores)]
        for result in evaluation.results
    ]
    if evaluation.weights:
        cells = {name: percent(weight, 1) for name, weight in evaluation.weights.items()}
        rows = [[*row, cells.get(row[0], "")] for row in rows]
        rows[0][-1] = "weight"
    return rows
