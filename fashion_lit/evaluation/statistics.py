"""Intervals and tests: Wilson, Student, McNemar."""

import math
import statistics
from collections.abc import Sequence

Z_95 = 1.959964  # of the normal distribution, 97.5 %
# Of Student's distribution, 97.5 %, for 1 to 10 degrees of freedom; for more, the last errs on the
# side of caution.
STUDENT_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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
