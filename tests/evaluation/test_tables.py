import pytest
import torch
from sklearn.metrics import classification_report as sklearn_report

from fashion_lit.data.fashion_mnist import CLASS_NAMES
from fashion_lit.data.randomness import generator
from fashion_lit.evaluation.metrics import confusion_matrix
from fashion_lit.evaluation.tables import classification_report, confusion_matrix_figure


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
