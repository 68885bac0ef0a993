"""What the figures show."""

import pytest

from fashion_lit.evaluation.figures import curves_figure


@pytest.mark.parametrize("num_epochs", [1, 2, 3, 14, 300])
def test_epoch_ticks_are_whole_numbers(num_epochs: int) -> None:
    steps = range(9, 10 * num_epochs, 10)
    curves = {"train/lr": [(step, 0.1) for step in range(10 * num_epochs)]}
    for split in ("train", "val"):
        curves |= {f"{split}/{name}": [(s, 0.5) for s in steps] for name in ("loss", "accuracy")}
    figure = curves_figure(curves, num_epochs)
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert all(text.removeprefix("−").isdecimal() for text in shown)
