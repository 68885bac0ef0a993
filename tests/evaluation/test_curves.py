"""The range test's curve: smoothing, suggestion and drawing, on curves with a known answer."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from fashion_lit.evaluation.curves import (
    COLUMNS,
    ROWS,
    RangeCurve,
    geometric_rates,
    smoothed_at,
    window_of,
)

RATES = geometric_rates(1e-5, 10.0, 200)
LOGS = np.log10(RATES)
STEPS_PER_DECADE = 199 / 6


def curve_of(losses: np.ndarray) -> RangeCurve:
    return RangeCurve(RATES[: len(losses)], losses.tolist(), window_of(RATES))


def test_rates_grow_by_a_constant_factor() -> None:
    assert geometric_rates(1e-3, 1.0, 4) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])
    assert window_of(RATES) == pytest.approx(0.15 * STEPS_PER_DECADE)
    assert window_of(geometric_rates(1e-5, 10.0, 20)) == 1.0


@pytest.mark.parametrize("window", [1.0, 4.9])
def test_smoothing_equals_scipys_gaussian_filter(window: float) -> None:
    losses = np.random.default_rng(0).uniform(1, 3, 40)
    sums, weights = (
        gaussian_filter1d(values, window, mode="constant", truncate=3.0)
        for values in (losses, np.ones(40))
    )
    smoothed = [smoothed_at(losses.tolist(), i, window) for i in range(40)]
    assert smoothed == pytest.approx((sums / weights).tolist())


def test_the_suggestion_is_the_middle_of_a_parabolas_bottom() -> None:
    curve = curve_of(1 + 0.5 * (LOGS + 2) ** 2)
    # Smoothing lifts a parabola by half its curvature times the window's variance.
    half_width = math.sqrt(2 * 0.05 * (1 + 0.5 * 0.15**2))
    first, last = (LOGS[index] for index in curve.bottom)
    assert first == pytest.approx(-2 - half_width, abs=1.5 / STEPS_PER_DECADE)
    assert last == pytest.approx(-2 + half_width, abs=1.5 / STEPS_PER_DECADE)
    assert curve.suggestion == pytest.approx(1e-2, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_suggestion_by_less_than_a_factor_of_two(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.05, len(RATES))
    suggestion = curve_of(1 + 0.5 * (LOGS + 2) ** 2 + noise).suggestion
    assert suggestion is not None
    assert 0.5e-2 < suggestion < 2e-2


def test_a_divergence_of_any_height_gives_the_same_suggestion() -> None:
    losses = np.where(LOGS < -1, 1.0, 1e30) + np.where(LOGS < -3, 1.0, 0.0)
    losses = losses[: int(np.argmax(losses > 3)) + 2]  # as a test ends
    heights = [curve_of(np.minimum(losses, height)).suggestion for height in (10, 1e6, 1e30)]
    assert heights == pytest.approx([1e-2] * 3, rel=0.6)
    assert heights[0] == heights[1] == heights[2]


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.005])
def test_there_is_no_suggestion_if_the_loss_never_falls_by_the_tolerance(slope: float) -> None:
    curve = curve_of(2 + slope * (LOGS + 5))
    assert curve.suggestion is None
    assert "^" not in curve.text()


def test_text_marks_the_suggestion_and_one_point_a_column() -> None:
    curve = curve_of(1 + 0.5 * (LOGS + 2) ** 2)
    *rows, axis, ends = curve.text().splitlines()
    assert curve.text().isascii()
    assert len(rows) == ROWS
    start = axis.index("+") + 1
    cells = [row[start:] for row in rows]
    for column in range(COLUMNS):
        assert sum(row[column] == "*" for row in cells) == 1
    marked = axis.index("^") - start
    assert all(row[marked] in "*|" for row in cells)
    assert 10 ** (-5 + 6 * marked / (COLUMNS - 1)) == pytest.approx(1e-2, rel=0.15)
    assert ends.split() == ["1e-05", "learning", "rate", "10"]
    assert all(len(line) <= start + COLUMNS for line in (*rows, axis, ends))
