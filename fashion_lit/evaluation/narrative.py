"""Describe the scores of an evaluation in sentences.

for sentence in describe(scores, "test"): …
"""

import math
import re
from collections.abc import Mapping, Sequence

from fashion_lit.evaluation.calibration import Calibration
from fashion_lit.evaluation.curves import Curve
from fashion_lit.evaluation.scores import Confusion, Scores

NUM_CONFUSIONS = 4  # pairs of classes to list
MAX_LISTED = 10  # classes in a sentence
OVERFIT_POINTS = 3.0  # percentage points of accuracy; a larger train-validation gap is overfitting
CALIBRATED_POINTS = 1.0  # percentage points; largest gap of a calibrated model


def percent(share: float, digits: int = 2) -> str:
    """Format a share in [0, 1] as a percentage."""
    return f"{100 * share:.{digits}f} %"


def keep_units(text: str) -> str:
    """Return text with a non-breaking space between a number and the unit or word after it."""
    return re.sub(r"(?<=\d) (?=[%\w])", "\N{NO-BREAK SPACE}", text)


def describe(scores: Scores, split: str) -> list[str]:
    """Return sentences on one split's accuracy, classes, confusions and calibration."""
    sentences = [describe_accuracy(scores, split)]
    sentences += describe_classes(scores)
    sentences.append(describe_confusions(scores.confusions))
    sentences.append(describe_calibration(scores))
    return sentences


def describe_accuracy(scores: Scores, split: str) -> str:
    """State accuracy, its interval and, if every class has images, macro F1."""
    low, high = scores.interval
    names = {"val": "Validation", "test": "Test"}
    text = (
        f"{names[split]} accuracy is {percent(scores.accuracy)} on {scores.num_images:,} images "
        f"(95 % interval {percent(low)} to {percent(high)}, Wilson)"
    )
    if bool(scores.present.all()):
        text += f"; macro F1 is {scores.classes.average('macro')[2]:.3f}"
    return f"{text}."


def describe_classes(scores: Scores) -> list[str]:
    """List the best and the worst class, classes never predicted and classes without images."""
    class_names = scores.class_names
    present = [i for i in range(len(class_names)) if bool(scores.present[i])]
    f1 = scores.classes.f1.tolist()
    best, worst = max(present, key=lambda i: f1[i]), min(present, key=lambda i: f1[i])
    precision, recall = scores.classes.precision.tolist(), scores.classes.recall.tolist()
    sentences = []
    if f1[best] == f1[worst]:
        sentences.append(f"All classes are recognised equally well (F1 {f1[best]:.3f}).")
    else:
        sentences.append(
            f"The best class is {class_names[best]} (F1 {f1[best]:.3f}), the worst is "
            f"{class_names[worst]} (F1 {f1[worst]:.3f}: precision {precision[worst]:.3f}, "
            f"recall {recall[worst]:.3f})."
        )
    predicted = scores.confusion.sum(0)
    never = [class_names[i] for i in present if predicted[i] == 0]
    if never:
        sentences.append(f"Never predicted: {list_names(never)}.")
    absent = [name for i, name in enumerate(class_names) if i not in present]
    if absent:
        sentences.append(f"No images, and therefore no scores: {list_names(absent)}.")
    return sentences


def list_names(names: Sequence[str]) -> str:
    """Return the first MAX_LISTED names, and the number of the others."""
    more = [f"{len(names) - MAX_LISTED:,} more"] if len(names) > MAX_LISTED else []
    return ", ".join([*names[:MAX_LISTED], *more])


def describe_confusions(confusions: Sequence[Confusion]) -> str:
    """List the most frequent confusions, with counts in both directions."""
    if not confusions:
        return "Every image is classified correctly."
    total = sum(pair.first_as_second + pair.second_as_first for pair in confusions)
    largest = confusions[:NUM_CONFUSIONS]
    share = sum(pair.first_as_second + pair.second_as_first for pair in largest) / total
    pairs = "; ".join(
        f"{p.first} → {p.second} {p.first_as_second}, {p.second} → {p.first} {p.second_as_first}"
        for p in largest
    )
    mistakes = "1 mistake" if total == 1 else f"{total:,} mistakes"
    return f"Of {mistakes}, {percent(share, 0)} are between these classes: {pairs}."


def describe_calibration(scores: Scores) -> str:
    """State whether the model is calibrated, overconfident or underconfident."""
    gap = 100 * (scores.mean_confidence - scores.accuracy)
    if abs(gap) <= CALIBRATED_POINTS:
        verdict = "well calibrated"
    elif gap > 0:
        verdict = "overconfident"
    else:
        verdict = "underconfident"
    return (
        f"The model is {verdict}: mean confidence {percent(scores.mean_confidence)}, expected "
        f"calibration error {percent(scores.calibration_error)}, log-loss {scores.log_loss:.4f}."
    )


def describe_temperature(before: Scores, calibration: Calibration, split: str) -> str:
    """State a temperature, and calibration error and log-loss without and with it."""
    after = calibration.scores
    text = (
        f"Logits divided by a temperature of {calibration.temperature:.2f}, which minimises the "
        f"log-loss on the validation images, give an expected calibration error of "
        f"{percent(after.calibration_error)} instead of {percent(before.calibration_error)} and a "
        f"log-loss of {after.log_loss:.4f} instead of {before.log_loss:.4f}"
    )
    return f"{text}, on the images it was fitted on." if split == "val" else f"{text}."


def describe_fitted_weights(weights: Mapping[str, float], num_images: int) -> str:
    """State the weights of an ensemble's members, which `fit_weights` found."""
    listed = ", ".join(f"{percent(weight, 1)} {name}" for name, weight in weights.items())
    return (
        "The weights of the weighted ensemble minimise its log-loss at its best temperature on "
        f"the {num_images:,} validation images: {listed}. So its scores on these images are "
        "optimistic."
    )


def describe_selection(counts: Mapping[str, int], num_candidates: int, num_images: int) -> str:
    """State an ensemble's members and how often `select_members` chose each."""
    listed = ", ".join(f"{count} × {name}" for name, count in counts.items())
    num_rounds = sum(counts.values())
    rounds = "one round" if num_rounds == 1 else f"each of {num_rounds:,} rounds"
    return (
        f"The selected ensemble is {listed}, chosen from {num_candidates:,} runs (Caruana et al. "
        f"2004): in {rounds}, the run was added with which the ensemble's log-loss at its best "
        f"temperature on the {num_images:,} validation images is smallest. So its scores on these "
        "images are optimistic."
    )


def describe_fit(curves: Mapping[str, Curve]) -> str:
    """Interpret the last epoch's gap between training and validation accuracy; "" if unknown."""
    found = [curves.get(f"{split}/accuracy") for split in ("train", "val")]
    if not found[0] or not found[1]:
        return ""
    train, val = (curve[-1][1] for curve in found if curve)
    gap = 100 * (train - val)
    text = (
        f"In the last epoch, training accuracy is {percent(train)} and validation accuracy "
        f"{percent(val)}, a gap of {gap:+.2f} points: "
    )
    if gap > OVERFIT_POINTS:
        return text + "the model overfits; augmentation may help."
    if gap < 0:
        return text + (
            "augmentation and dropout make training harder than validation; longer training or "
            "a larger network may help."
        )
    return text + "the model hardly overfits."


def describe_loss(label_smoothing: float, *, is_weighted: bool, num_classes: int) -> str:
    """Say why the losses in the curves are not the log-loss; "" if they are.

    Args:
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        is_weighted: whether classes have weights in the loss.
        num_classes: number of classes.
    """
    reasons = [f"label smoothing of {label_smoothing:g}"] if label_smoothing else []
    reasons += ["class weights"] if is_weighted else []
    if not reasons:
        return ""
    text = f"The losses in the curves are not the log-loss: they include {' and '.join(reasons)}"
    if is_weighted:
        return f"{text}."
    others = label_smoothing / num_classes  # the target of each wrong class
    target = 1 - label_smoothing + others
    least = -target * math.log(target) - (num_classes - 1) * others * math.log(others)
    return f"{text}, with which no loss can be less than {least:.3f}."
