"""Whether one model is better than another beyond chance, on the same images.

    print(compare("a", "b", {0: predictions_a}, {0: predictions_b}).text)

A model trained with several seeds is compared seed by seed.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fashion_lit.errors import UserError
from fashion_lit.evaluation.narrative import percent
from fashion_lit.evaluation.predictions import Predictions, same_images
from fashion_lit.evaluation.statistics import mcnemar, student_interval

LEVEL = 0.05  # of significance


@dataclass(frozen=True)
class Comparison:
    """How two models differ.

    Args:
        text: in words.
        p_values: McNemar's, by seed.
        differences: second minus first accuracy, by seed.
        only_first: images that only the first gets right, with the first common seed: (N,) bool.
        only_second: images that only the second gets right: (N,) bool.
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
    """Compare two models' predictions by seed; raises UserError for other images or seeds.

    Single runs may have different seeds; several are paired by theirs.
    """
    if len(first) == len(second) == 1:
        pairs = {seed: (*first.values(), *second.values()) for seed in first}
    else:
        pairs = {seed: (first[seed], second[seed]) for seed in first.keys() & second.keys()}
        if len(pairs) < max(len(first), len(second)):
            raise UserError(
                f"Expected both models with the same seeds, but got {sorted(first)} of "
                f"{first_name} and {sorted(second)} of {second_name}."
            )
    p_values, differences, lines = {}, {}, []
    for seed, (one, other) in sorted(pairs.items()):
        same_images([one, other])
        only_one, only_other = one.correct & ~other.correct, other.correct & ~one.correct
        counts = int(only_one.sum()), int(only_other.sum())
        p_values[seed] = mcnemar(*counts)
        differences[seed] = (counts[1] - counts[0]) / len(one.labels)
        which = f"Seed {seed}: o" if len(pairs) > 1 else "O"
        lines.append(
            f"{which}f {len(one.labels):,} images, only {first_name} gets {counts[0]} right, only "
            f"{second_name} {counts[1]}: {100 * differences[seed]:+.2f} points, McNemar's "
            f"p = {p_values[seed]:.2g}."
        )
    one, other = pairs[min(pairs)]
    return Comparison(
        text="\n".join([*lines, verdict(first_name, second_name, p_values, differences)]),
        p_values=p_values,
        differences=differences,
        only_first=one.correct & ~other.correct,
        only_second=other.correct & ~one.correct,
    )


def verdict(
    first_name: str,
    second_name: str,
    p_values: Mapping[int, float],
    differences: Mapping[int, float],
) -> str:
    """Say which model is better, or that chance explains the difference."""
    mean = statistics.fmean(differences.values())
    better, worse = (second_name, first_name) if mean > 0 else (first_name, second_name)
    if len(differences) > 1:
        low, high = student_interval(list(differences.values()))
        beyond = not low <= 0 <= high
        basis = (
            f"over {len(differences)} seeds, {100 * mean:+.2f} points, 95 % interval "
            f"{100 * low:+.2f} to {100 * high:+.2f}, Student, paired"
        )
    else:
        beyond = min(p_values.values()) < LEVEL
        basis = f"one run each, so the spread between seeds is not known; level {percent(LEVEL, 0)}"
    if beyond:
        return f"{better} is better than {worse} beyond chance ({basis})."
    return f"Chance explains the difference between {first_name} and {second_name} ({basis})."
