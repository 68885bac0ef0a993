import pytest
import torch
from matplotlib.colors import to_rgb
from sklearn.metrics import classification_report as sklearn_report

from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.evaluation.metrics import confusion_matrix
from fashion_lit.evaluation.tables import (
    NUM_WORST,
    classification_report,
    confusion_matrix_figure,
)


@pytest.mark.parametrize("num_images", [40, 5000])
def test_classification_report_equals_scikit_learns(num_images: int) -> None:
    logits = torch.randn(num_images, 10, generator=generator(0))
    labels = torch.randint(0, 10, (num_images,), generator=generator(1))
    logits[torch.arange(num_images), labels] += 2
    predicted = logits.argmax(1)
    expected = sklearn_report(
        labels, predicted, labels=range(10), target_names=CLASS_NAMES, digits=3, zero_division=0
    )
    assert classification_report(confusion_matrix(predicted, labels, 10), CLASS_NAMES) == expected


def test_confusion_matrix_figure_shows_every_count() -> None:
    confusion = torch.arange(100).view(10, 10)
    (axes,) = confusion_matrix_figure(confusion, CLASS_NAMES).axes
    shown = [text.get_text().split("\n") for text in axes.texts]
    assert [int(lines[0]) for lines in shown] == list(range(100))
    assert shown[0] == ["0"]
    assert shown[1] == ["1", "2 %"]  # of 45
    assert shown[99] == ["99", "10 %"]  # of 945
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASS_NAMES)


def luminance(color: tuple[float, ...]) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("largest", [0, 3, 20, 60, 300])
def test_mistakes_have_their_own_colours_and_every_number_is_readable(largest: int) -> None:
    confusion = torch.diag(torch.full((10,), 900))
    confusion[0, 1:] = torch.arange(1, 10) * largest // 9
    (axes,) = confusion_matrix_figure(confusion, CLASS_NAMES).axes
    colors = axes.images[0].get_array()
    assert colors is not None
    darkness = [1 - luminance(tuple(color)) for color in colors[0]]
    assert darkness[1:] == sorted(darkness[1:])
    if largest:  # the most frequent mistake is the darkest cell, however rare it is
        assert darkness[9] > 0.9 > darkness[0]
    for text in axes.texts:
        column, row = (round(place) for place in text.get_position())
        pair = sorted([luminance(tuple(colors[row, column])), luminance(to_rgb(text.get_color()))])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 4.5  # WCAG 2, AA


def test_the_report_of_many_classes_has_the_worst_ones() -> None:
    names = [f"class {i}" for i in range(60)]
    confusion = torch.diag(torch.arange(60.0) + 1)
    confusion[:, 0] += 5
    confusion[0, 0] = 1
    rows = classification_report(confusion, names, max_rows=50).splitlines()
    listed = [row.split()[:2] for row in rows[2 : 2 + NUM_WORST]]
    assert listed == [["class", str(i)] for i in range(NUM_WORST)]
    assert rows[2 + NUM_WORST].split() == ["…", "50", "classes", "with", "a", "higher", "F1"]
    whole = classification_report(confusion, names).splitlines()
    assert len(whole) == len(rows) + 49  # 50 rows instead of one
    assert whole[-3:] == rows[-3:]
    assert classification_report(confusion, names, max_rows=60).splitlines() == whole
