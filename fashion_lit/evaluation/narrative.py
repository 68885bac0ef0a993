"""What the numbers of an evaluation say, in sentences.

for sentence in describe(scores, "test", CLASS_NAMES): …
"""

from collections.abc import Mapping, Sequence

from fashion_lit.evaluation.curves import Curve
from fashion_lit.evaluation.scores import Confusion, Scores

NUM_CONFUSIONS = 4  # pairs of classes that are named
OVERFIT_POINTS = 3.0  # of accuracy between training and validation, from which on it is named so
CALIBRATED_POINTS = 1.0  # between confidence and accuracy, up to which they agree


def percent(share: float, digits: int = 2) -> str:
    """Write a share in [0, 1] as a percentage."""
    return f"{100 * share:.{digits}f} %"


def describe(scores: Scores, split: str, class_names: Sequence[str]) -> list[str]:
    """Return what one split's scores say: accuracy, classes, confusions, confidence."""
    told = [describe_accuracy(scores, split)]
    told += describe_classes(scores, class_names)
    told.append(describe_confusions(scores.confusions))
    told.append(describe_calibration(scores))
    return told


def describe_accuracy(scores: Scores, split: str) -> str:
    """Name accuracy, its interval, and macro F1 where every class has images."""
    low, high = scores.interval
    names = {"val": "Validation", "test": "Test"}
    text = (
        f"{names[split]} accuracy is {percent(scores.accuracy)} on {scores.num_images:,} images "
        f"(95 % interval {percent(low)} to {percent(high)}, Wilson)"
    )
    if bool(scores.present.all()):
        text += f"; macro F1 is {scores.classes.average('macro')[2]:.3f}"
    return f"{text}."


def describe_classes(scores: Scores, class_names: Sequence[str]) -> list[str]:
    """Name the best and the worst class, those never predicted, and those without images."""
    present = [i for i in range(len(class_names)) if bool(scores.present[i])]
    f1 = scores.classes.f1.tolist()
    best, worst = max(present, key=lambda i: f1[i]), min(present, key=lambda i: f1[i])
    precision, recall = scores.classes.precision.tolist(), scores.classes.recall.tolist()
    told = []
    if f1[best] == f1[worst]:
        told.append(f"All classes are recognised equally well (F1 {f1[best]:.3f}).")
    else:
        told.append(
            f"Best is {class_names[best]} (F1 {f1[best]:.3f}), worst is {class_names[worst]} "
            f"(F1 {f1[worst]:.3f}: precision {precision[worst]:.3f}, recall {recall[worst]:.3f})."
        )
    predicted = scores.confusion.sum(0)
    never = [class_names[i] for i in present if predicted[i] == 0]
    if never:
        told.append(f"Never predicted: {', '.join(never)}.")
    absent = [name for i, name in enumerate(class_names) if i not in present]
    if absent:
        told.append(f"Without images here, so without scores: {', '.join(absent)}.")
    return told


def describe_confusions(confusions: Sequence[Confusion]) -> str:
    """Name the largest confusions in both directions, with counts."""
    if not confusions:
        return "No image is mistaken."
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
    """Say whether the model is calibrated."""
    gap = 100 * (scores.mean_confidence - scores.accuracy)
    if abs(gap) <= CALIBRATED_POINTS:
        verdict = "well calibrated"
    elif gap > 0:
        verdict = "overconfident"
    else:
        verdict = "underconfident"
    return (
        f"The model is {verdict}: mean confidence {percent(scores.mean_confidence)}, expected "
        f"calibration error {percent(scores.calibration_error)}, negative log-likelihood "
        f"{scores.log_loss:.4f}."
    )


def describe_fit(curves: Mapping[str, Curve]) -> str:
    """Read the gap between training and validation accuracy in the last epoch; "" if unknown."""
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
            "augmented images and dropout make training harder than validation; longer training, "
            "or a larger network, may help."
        )
    return text + "the model hardly overfits."
