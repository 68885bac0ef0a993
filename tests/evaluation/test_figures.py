"""What the figures show."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from fashion_lit.data.classes import class_tags
from fashion_lit.evaluation.figures import (
    CAPTION,
    GAP,
    MAX_CURVES,
    PICTURE,
    PITCH,
    class_curves_figure,
    curves_figure,
    pictures_figure,
)
from fashion_lit.evaluation.tables import NUMBERED, confusion_matrix_figure
from fashion_lit.files import png


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


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]


ODD_NAMES = ["$x$", "_hidden", "お", "n" * 99, "two\nlines", *(f"class {i}" for i in range(95))]
DRAWN = ["$x$", "_hidden", "#2", f"{'n' * 12} … {'n' * 12}", "two lines", "class 0"]


@pytest.mark.parametrize("num_classes", [2, 26, 100])
@pytest.mark.filterwarnings("error")
def test_any_names_and_numbers_of_classes_are_drawn(num_classes: int) -> None:
    names = ODD_NAMES[:num_classes]
    curves = {
        f"val/{score}/{tag}": [(0, 0.1), (1, 0.01 * abs(place - 50))]
        for place, tag in enumerate(class_tags(names))
        for score in ("f1", "precision", "recall")
    }
    figure = class_curves_figure(curves, names)
    lines = [line.get_ydata()[-1] for line in figure.axes[0].get_lines()]  # pyright: ignore
    worst = sorted(0.01 * abs(place - 50) for place in range(num_classes))[:MAX_CURVES]
    assert sorted(lines) == worst
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(worst)
    assert png(figure)
    matrix = confusion_matrix_figure(torch.eye(num_classes).roll(1, 0), names)
    labels = [label.get_text() for label in matrix.axes[0].get_yticklabels()]
    assert labels[: len(DRAWN)] == DRAWN[:num_classes]
    assert len(labels) == num_classes
    assert ("1\n100 %" in texts_of(matrix)) == (num_classes <= NUMBERED)
    assert png(matrix)
    # No label is cut off: all of it is inside the figure.
    for label in matrix.axes[0].get_xticklabels() + matrix.axes[0].get_yticklabels():
        box = label.get_window_extent()
        assert min(box.x0, box.y0) >= 0, label


@pytest.mark.parametrize(("side", "channels"), [(20, 3), (20, 1), (300, 3), (300, 1)])
def test_pictures_have_their_colours(side: int, channels: int) -> None:
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 51]], dtype=torch.uint8)
    images = colors[:, :, None, None].expand(3, 3, side, side)
    if channels == 1:
        images = torch.zeros(3, side, side, dtype=torch.uint8)
        images[:, side // 2 :] = 200
    probabilities = torch.eye(3)[[0, 1, 0]]
    figure = pictures_figure(images, torch.arange(3), probabilities, ["a", "b", "n" * 50])
    canvas = figure.axes[0].images[0].get_array()
    assert canvas is not None
    for place, color in enumerate(colors.tolist()):
        left = 2 * GAP + place * PITCH[1]
        tile = canvas[CAPTION : CAPTION + PICTURE, left : left + PICTURE]
        if channels == 3:
            assert np.allclose(tile, np.array(color) / 255, atol=1e-6)
        else:
            assert (tile[0].max(), tile[-1].min()) == pytest.approx((0, 1))
    assert f"{'n' * 9} … {'n' * 9}\n→ a 100 %" in texts_of(figure)
