"""Test whether one model is significantly better than another on the same images.

    print(compare("a", "b", {0: predictions_a}, {0: predictions_b}).text)

Models that were trained with several seeds are compared seed by seed.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fashion_lit.errors import UserError
from fashion_lit.evaluation.figures import pictures_figure
from fashion_lit.evaluation.narrative import percent
from fashion_lit.evaluation.predictions import Predictions, same_images
from fashion_lit.evaluation.statistics import mcnemar, student_interval
from fashion_lit.files import png, write_atomically

LEVEL = 0.05  # significance level
NUM_PICTURES = 12  # of each model
Named = tuple[str, Predictions]


@dataclass(frozen=True)
class Comparison:
    """The difference between two models.

    Args:
        text: summary, one line per seed and a verdict.
        p_values: p-values of McNemar's test, by seed.
        differences: accuracy of the second model minus that of the first, by seed.
        only_first: images that only the first model classifies correctly, with the lowest common
            seed: (N,) bool.
        only_second: images that only the second model classifies correctly, with the same seed:
            (N,) bool.
    """

    text: str
    p_values: Mapping[int, float]
    differences: Mapping[int, float]
    only_first: Tensor
    only_second: Tensor


def compare(
    first_name: str,
    second_name: str,
    first: Mapping[int, Predictions],
    second: Mapping[int, Predictions],
) -> Comparison:
    """Compare two models' predictions by seed.

    Two single runs may have different seeds; several runs are paired by seed. Raises UserError if
    the images or, with several runs, the seeds differ.
    """
    if len(first) == len(second) == 1:
        pairs = {seed: (*first.values(), *second.values()) for seed in first}
    else:
        pairs = {seed: (first[seed], second[seed]) for seed in first.keys() & second.keys()}
        if len(pairs) < max(len(first), len(second)):
            raise UserError(
                f"Expected both models with the same seeds, but got {sorted(first)} for "
                f"{first_name} and {sorted(second)} for {second_name}; name runs of the same seeds."
            )
    p_values, differences, lines = {}, {}, []
    for seed, (one, other) in sorted(pairs.items()):
        same_images([one, other])
        only_one, only_other = one.correct & ~other.correct, other.correct & ~one.correct
        counts = int(only_one.sum()), int(only_other.sum())
        p_values[seed] = mcnemar(*counts)
        differences[seed] = (counts[1] - counts[0]) / len(one.labels)
        start = f"Seed {seed}: o" if len(pairs) > 1 else "O"
        lines.append(
            f"{start}f {len(one.labels):,} images, {counts[0]} are correct only with {first_name} "
            f"and {counts[1]} only with {second_name}: {100 * differences[seed]:+.2f} points, "
            f"McNemar's p = {p_values[seed]:.2g}."
        )
    one, other = pairs[min(pairs)]
    return Comparison(
        text="\n".join([*lines, verdict(first_name, second_name, p_values, differences)]),
        p_values=p_values,
        differences=differences,
        only_first=one.correct & ~other.correct,
        only_second=other.correct & ~one.correct,
    )


def write_comparison(
    output: Path,
    comparison: Comparison,
    first: Named,
    second: Named,
    class_names: Sequence[str],
) -> None:
    """Write the text of a comparison, and pictures of images that one model alone gets right.

    Args:
        output: directory, which is created if missing.
        comparison: the comparison.
        first: the first model's name and its predictions with the lowest common seed.
        second: those of the second model.
        class_names: names of the classes, in the order of the labels.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "comparison.txt", f"{comparison.text}\n")
    sides = {
        "only_first": (first[0], comparison.only_first, second[1]),
        "only_second": (second[0], comparison.only_second, first[1]),
    }
    for file_name, (name, chosen, loser) in sides.items():
        places = chosen.nonzero()[:NUM_PICTURES, 0]
        if len(places):
            shown = (loser.images[places], loser.labels[places], loser.probabilities[places])
            title = f"Only {name} gets these right; the other predicts"
            figure = pictures_figure(*shown, class_names, title)
            write_atomically(output / f"{file_name}.png", png(figure))


def verdict(
    first_name: str,
    second_name: str,
    p_values: Mapping[int, float],
    differences: Mapping[int, float],
) -> str:
    """Return a sentence: which model is better, or that the difference is not significant."""
    mean = statistics.fmean(differences.values())
    better, worse = (second_name, first_name) if mean > 0 else (first_name, second_name)
    if len(differences) > 1:
        low, high = student_interval(list(differences.values()))
        significant = not low <= 0 <= high
        basis = (
            f"{len(differences)} paired seeds: {100 * mean:+.2f} points, 95 % interval "
            f"{100 * low:+.2f} to {100 * high:+.2f}, Student"
        )
    else:
        significant = min(p_values.values()) < LEVEL
        basis = f"one run each, so the spread between seeds is unknown; level {percent(LEVEL, 0)}"
    if significant:
        return f"{better} is significantly better than {worse} ({basis})."
    return f"The difference between {first_name} and {second_name} is not significant ({basis})."
