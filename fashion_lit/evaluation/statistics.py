"""Confidence intervals (Wilson, Student) and McNemar's test."""

import math
import statistics
from collections.abc import Sequence

Z_95 = 1.959964  # 97.5 % quantile of the normal distribution
# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; the last one serves for more, too,
# which makes the interval slightly too wide.
STUDENT_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def wilson_interval(num_hits: int, num_trials: int, z: float = Z_95) -> tuple[float, float]:
    """Return the confidence interval of a share, Wilson 1927.

    It stays in [0, 1] and is valid for shares of 0 and 1, too.
    """
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
    """Return the exact two-sided p-value of the null hypothesis of equal accuracy, McNemar 1947.

    Args:
        num_only_first: number of images that only the first model classifies correctly.
        num_only_second: number of images that only the second model classifies correctly.
    """
    total = num_only_first + num_only_second
    fewer = min(num_only_first, num_only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)  # integers up to here, so exact for any size
