"""The loss of a student, against loops over images and classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fashion_lit.data.batches import to_input
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.distillation import Distillation, Teacher

TINY = {"name": "fast_cnn", "widths": [4, 4, 4]}
SIZES = ((28, True), (32, False))  # of each teacher's images, and whether they are normalised


def networks() -> list[nn.Module]:
    """Networks of different image sizes, with batch normalisation and dropout."""
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(size**2, 10))
        for size, _ in SIZES
    ]


def distillation(weight: float, temperature: float) -> Distillation:
    teachers = [
        Teacher(network, image_size=size, normalize=normalize)
        for network, (size, normalize) in zip(networks(), SIZES, strict=True)
    ]
    return Distillation(teachers, weight=weight, temperature=temperature)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def counted(
    logits: Tensor, pixels: Tensor, labels_loss: float, weight: float, temperature: float
) -> float:
    """The loss by its definition: labels, and divergence from the mean of the teachers."""
    total = 0.0
    answers = []
    for network, (size, normalize) in zip(networks(), SIZES, strict=True):
        inputs = to_input(pixels, image_size=size, normalize=normalize)
        answers.append(network.eval()(inputs).tolist())
    for place, own in enumerate(logits.tolist()):
        student = softmax(own, temperature)
        each = [softmax(answer[place], temperature) for answer in answers]
        for index in range(10):
            target = sum(probabilities[index] for probabilities in each) / len(each)
            total += target * (math.log(target) - math.log(student[index]))
    return (1 - weight) * labels_loss + weight * temperature**2 * total / len(logits)


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 4.0), (1.0, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_that_of_a_loop(weight: float, temperature: float, mixed: bool) -> None:
    weights = [float(1 + index) for index in range(10)]
    classifier = CNNClassifier(network=TINY, label_smoothing=0.1, class_weights=weights)
    pixels = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (6,))
    if mixed:
        labels = torch.randn(6, 10).softmax(1)
    batch = to_input(pixels, image_size=28, normalize=True), labels
    plain, logits = classifier._step(batch, classifier.train_metrics)
    classifier.distillation = distillation(weight, temperature)
    found, _ = classifier._step((*batch, pixels), classifier.train_metrics)
    # Smoothing and class weights are in the labels' part, `plain`, and nowhere else.
    expected = counted(logits, pixels, float(plain.detach()), weight, temperature)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_validation_has_the_plain_loss() -> None:
    classifier = CNNClassifier(network=TINY).eval()
    classifier.distillation = distillation(0.9, 4.0)
    batch = torch.randn(6, 1, 28, 28), torch.arange(6)
    loss, logits = classifier._step(batch, classifier.val_metrics)
    assert torch.equal(loss, F.cross_entropy(logits, batch[1]))


def test_a_student_with_its_teachers_answers_has_no_loss_and_no_gradient() -> None:
    (network, _), pixels = networks(), torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8)
    teacher = Teacher(network, image_size=28, normalize=True)
    logits = teacher(pixels).clone().requires_grad_()
    loss = Distillation([teacher], weight=1.0, temperature=2.0)(torch.tensor(5.0), logits, pixels)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.zeros(6, 10), atol=1e-7)


def test_teachers_are_frozen_and_no_part_of_the_student() -> None:
    classifier = CNNClassifier(network=TINY)
    names = classifier.state_dict().keys()
    classifier.distillation = distillation(0.9, 4.0)
    classifier.train()
    teachers = [teacher.network for teacher in classifier.distillation.teachers]
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in teachers]
    pixels = torch.randint(0, 256, (6, 28, 28), dtype=torch.uint8)
    batch = to_input(pixels, image_size=28, normalize=True), torch.arange(6), pixels
    draws = torch.get_rng_state()
    classifier.distillation.probabilities(pixels)
    assert torch.equal(torch.get_rng_state(), draws)
    classifier.training_step(batch, 0).backward()
    for teacher, state in zip(teachers, before, strict=True):
        assert all(torch.equal(teacher.state_dict()[key], value) for key, value in state.items())
        assert all(weights.grad is None for weights in teacher.parameters())
    assert classifier.state_dict().keys() == names
    assert not {id(p) for t in teachers for p in t.parameters()} & {
        id(p) for p in classifier.parameters()
    }
