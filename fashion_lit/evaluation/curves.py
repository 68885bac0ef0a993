"""Read a run's training curves; find a learning rate on the curve of a range test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion_lit.files import event_files

if TYPE_CHECKING:
    import pandas as pd

Curve = list[tuple[int, float]]  # (TensorBoard step, value)
# TensorBoard shows groups of tags by name: this one after train and val, whose charts are curves,
# while a test is one point. Earlier versions named it "test".
TEST_GROUP = "withheld_test"

WINDOW = 0.15  # standard deviation of the smoothing window, in powers of ten of the learning rate
TOLERANCE = 0.05  # the bottom of a curve: losses up to this share above the minimum
DIVERGED = 4.0  # a test ends at this multiple of the smoothed minimum, as in fastai and Lightning
ROWS, COLUMNS = 10, 60  # of a curve drawn in text


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Return all logged scalars of a run by tag, in the order of their steps.

    For example {"val/accuracy": [(187, 0.84), …]}. The tags of TEST_GROUP are "test/…", as in
    metrics.json. A damaged file gives the points before its damage.
    """
    curves: dict[str, Curve] = {}
    for path in event_files(run_dir):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = [(point.step, point.value) for point in events.Scalars(tag)]
            name = tag.replace(f"{TEST_GROUP}/", "test/", 1)
            curves.setdefault(name, []).extend(points)
    return {tag: sorted(points, key=itemgetter(0)) for tag, points in curves.items()}


def curves_frame(run_dir: Path) -> "pd.DataFrame":
    """Return a run's logged scalars: a column for each tag, a row for each TensorBoard step.

    Where a tag was not logged is NaN. If it was logged twice at a step, the last value counts.
    """
    import pandas as pd  # imported late, because it takes half a second

    columns = {tag: pd.Series(dict(points)) for tag, points in read_curves(run_dir).items()}
    return pd.DataFrame(columns).rename_axis(index="step")


def geometric_rates(lowest: float, highest: float, count: int) -> list[float]:
    """Return `count` learning rates from lowest to highest, each the same multiple of the last."""
    ratio = highest / lowest
    return [lowest * ratio ** (index / (count - 1)) for index in range(count)]


def window_of(rates: Sequence[float]) -> float:
    """Return the standard deviation of the smoothing window in steps, for geometric rates."""
    return max(1.0, WINDOW * (len(rates) - 1) / math.log10(rates[-1] / rates[0]))


def smoothed_at(losses: Sequence[float], index: int, window: float) -> float:
    """Return the mean of the losses around an index, weighted by a Gaussian window.

    The window is symmetric, so that the curve is not moved to higher rates; an exponential moving
    average, as in fastai and Lightning, moves it by a power of ten and more.

    Args:
        losses: any number, of which those around the index exist.
        index: the window's middle.
        window: its standard deviation, in steps.
    """
    reach = round(3 * window)
    near = range(max(0, index - reach), min(len(losses), index + reach + 1))
    weights = [math.exp(-0.5 * ((i - index) / window) ** 2) for i in near]
    return sum(w * losses[i] for w, i in zip(weights, near, strict=True)) / sum(weights)


@dataclass(frozen=True)
class RangeCurve:
    """The losses of a learning-rate range test.

    Smith 2015, Cyclical Learning Rates, https://arxiv.org/abs/1506.01186

    Args:
        rates: learning rates (N,), geometric.
        losses: training loss (N,) of the batch at each, before its step.
        window: standard deviation of the smoothing window, in steps.
    """

    rates: Sequence[float]
    losses: Sequence[float]
    window: float

    @cached_property
    def smoothed(self) -> list[float]:
        """The smoothed losses (N,); a batch counts at most as DIVERGED times the lowest loss.

        Without this limit the last losses, which may be huge, would lift the curve before them.
        """
        most = DIVERGED * min(self.losses)
        limited = [min(loss, most) for loss in self.losses]
        return [smoothed_at(limited, i, self.window) for i in range(len(limited))]

    @cached_property
    def bottom(self) -> tuple[int, int]:
        """The first and last index around the minimum at which the loss is within TOLERANCE."""
        smoothed = self.smoothed
        first = last = min(range(len(smoothed)), key=smoothed.__getitem__)
        most = smoothed[first] * (1 + TOLERANCE)
        while first > 0 and smoothed[first - 1] <= most:
            first -= 1
        while last < len(smoothed) - 1 and smoothed[last + 1] <= most:
            last += 1
        return first, last

    @property
    def suggestion(self) -> float | None:
        """The learning rate in the (geometric) middle of the bottom; None if the loss never falls.

        It is meant as the peak of a schedule: the rate where the loss stops to fall, Smith's upper
        bound of a cycle (section 3.3). The steepest descent (Lightning's rule) lies far below it,
        and the lower, the more steps a test has. A tenth of the minimum (fastai's) presumes a curve
        that smoothing has moved up. The middle of the bottom varies less than its lowest point.
        """
        first, last = self.bottom
        return None if first == 0 else math.sqrt(self.rates[first] * self.rates[last])

    @property
    def highest_shown(self) -> float:
        """The loss above which pictures cut the curve off, because divergence has no scale."""
        return 1.05 * max(self.smoothed[0], 2 * min(self.smoothed))

    def text(self) -> str:
        """Draw the smoothed loss over the logarithm of the rate, with the suggestion's column."""
        top, low = self.highest_shown, min(self.smoothed)
        grid = [[" "] * COLUMNS for _ in range(ROWS)]
        axis = ["-"] * COLUMNS
        if self.suggestion is not None:
            share = math.log(self.suggestion / self.rates[0], self.rates[-1] / self.rates[0])
            for line in (*grid, axis):
                line[round(share * (COLUMNS - 1))] = "^" if line is axis else "|"
        for column in range(COLUMNS):
            index = round(column / (COLUMNS - 1) * (len(self.smoothed) - 1))
            height = (min(top, self.smoothed[index]) - low) / (top - low)
            grid[round((1 - height) * (ROWS - 1))][column] = "*"
        labels = [f"{top:.3g}", *[""] * (ROWS - 2), f"{low:.3g}"]
        lines = [f"{label:>7} |{''.join(line)}" for label, line in zip(labels, grid, strict=True)]
        left, right = f"{self.rates[0]:.2g}", f"{self.rates[-1]:.2g}"
        ends = f"{left}{'learning rate':^{COLUMNS - len(left) - len(right)}}{right}"
        return "\n".join([*lines, f"{'loss':>7} +{''.join(axis)}", f"{'':9}{ends}"])
