"""Sentences about constructed cases."""

import pytest
import torch
import torch.nn.functional as F

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.evaluation.narrative import describe, describe_fit, describe_loss
from fashion_lit.evaluation.scores import score


def described(labels: list[int], predicted: list[int]) -> str:
    probabilities = torch.eye(10)[predicted]
    text = "\n".join(describe(score(probabilities, torch.tensor(labels), CLASS_NAMES), "test"))
    assert "nan" not in text.lower()
    return text


def test_a_perfect_classifier() -> None:
    everything = list(range(10)) * 5
    text = described(everything, everything)
    assert "Test accuracy is 100.00 % on 50 images (95 % interval 92.87 % to 100.00 %" in text
    assert "All classes are recognised equally well (F1 1.000)." in text
    assert "Every image is classified correctly." in text
    assert "well calibrated" in text


def test_a_classifier_that_confuses_exactly_two_classes() -> None:
    labels = list(range(10)) * 10
    predicted = [0 if label == 6 and i < 90 else label for i, label in enumerate(labels)]
    predicted[90] = 6
    text = described(labels, predicted)
    assert "The best class is Trouser (F1 1.000), the worst is Shirt (F1 0.167" in text
    assert "Of 10 mistakes, 100 % are between these classes: " in text
    assert "Shirt → T-shirt/top 9, T-shirt/top → Shirt 1." in text
    assert "overconfident" in text


def test_a_constant_classifier() -> None:
    text = described(list(range(10)) * 3, [4] * 30)
    assert "accuracy is 10.00 %" in text
    assert "The best class is Coat" in text
    assert "Never predicted: T-shirt/top, Trouser, Pullover, Dress, Sandal, Shirt" in text
    assert "Of 27 mistakes" in text


def test_a_class_without_images() -> None:
    labels = [label for label in range(10) if label != 8] * 3
    text = described(labels, labels)
    assert "No images, and therefore no scores: Bag." in text
    assert "macro F1" not in text
    assert "worst" not in text


def test_the_gap_between_training_and_validation_is_described() -> None:
    def fit(train: float, val: float) -> str:
        return describe_fit(
            {"train/accuracy": [(9, 0.1), (19, train)], "val/accuracy": [(19, val)]}
        )

    assert "a gap of +5.50 points: the model overfits" in fit(0.995, 0.94)
    assert "a gap of +1.00 points: the model hardly overfits." in fit(0.95, 0.94)
    assert "a gap of -2.00 points: augmentation and dropout" in fit(0.92, 0.94)
    assert describe_fit({}) == ""


def test_the_losses_of_the_curves_are_told_from_the_log_loss() -> None:
    def text(label_smoothing: float, *, is_weighted: bool) -> str:
        return describe_loss(label_smoothing, is_weighted=is_weighted, num_classes=10)

    assert text(0.0, is_weighted=False) == ""
    assert text(0.0, is_weighted=True).endswith("they include class weights.")
    assert text(0.1, is_weighted=True).endswith("label smoothing of 0.1 and class weights.")
    target = torch.tensor([0.91] + [0.01] * 9)
    least = F.cross_entropy(target.log()[None], torch.tensor([0]), label_smoothing=0.1)
    assert float(least) == pytest.approx(0.500, abs=5e-4)
    assert text(0.1, is_weighted=False) == (
        "The losses in the curves are not the log-loss: they include label smoothing of 0.1, with "
        "which no loss can be less than 0.500."
    )


def test_a_hundred_names_are_no_sentence() -> None:
    names = [f"class {i}" for i in range(100)]
    probabilities = torch.eye(100)[[0] * 50]
    text = "\n".join(describe(score(probabilities, torch.arange(50), names), "val"))
    assert "Never predicted: class 1, class 2, " in text
    assert "class 10, 39 more." in text
    assert "class 59, 40 more." in text  # of those without images
