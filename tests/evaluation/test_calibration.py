"""Temperature scaling of probabilities whose right temperature is known."""

import pytest
import torch

from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    apply_temperature,
    calibrate,
    fit_temperature,
)
from fashion_lit.evaluation.predictions import Predictions, ensemble
from fashion_lit.evaluation.scores import score

NUM_IMAGES = 20_000


def drawn(temperature: float, seed: int) -> Predictions:
    """Draw labels from the probabilities of logits, and predict with the logits times a factor."""
    logits = 3 * torch.randn(NUM_IMAGES, 10, generator=generator(seed))
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator(seed, 1))[:, 0]
    images = torch.zeros(NUM_IMAGES, 1, 1, dtype=torch.uint8)
    return Predictions((logits * temperature).softmax(1), labels, images)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_a_known_factor_of_the_logits(temperature: float) -> None:
    val, test = drawn(temperature, 0), drawn(temperature, 1)
    calibration = calibrate(val, test, CLASS_NAMES)
    assert calibration.temperature == pytest.approx(temperature, rel=0.03)
    before, after = score(test.probabilities, test.labels, CLASS_NAMES), calibration.scores
    assert after.calibration_error < 0.015
    assert after.accuracy == before.accuracy
    if temperature != 1:
        assert after.calibration_error < before.calibration_error / 3
        assert after.log_loss < before.log_loss


def test_no_other_temperature_has_a_smaller_log_loss() -> None:
    members = [drawn(2.0, 2), drawn(2.0, 2)]
    predictions = ensemble(members)
    best = fit_temperature(predictions.probabilities, predictions.labels)
    losses = [
        score(
            apply_temperature(predictions.probabilities, factor * best),
            predictions.labels,
            CLASS_NAMES,
        ).log_loss
        for factor in (1, 0.99, 1.01)
    ]
    assert min(losses) == losses[0]


def test_extreme_probabilities_have_a_temperature() -> None:
    certain, labels = torch.eye(10), torch.arange(10)
    assert fit_temperature(certain, labels) == pytest.approx(LOWEST)
    assert fit_temperature(certain, labels.roll(1)) == pytest.approx(HIGHEST)
    flat = apply_temperature(certain, HIGHEST)
    assert torch.isfinite(flat).all()
    torch.testing.assert_close(flat.sum(1), torch.ones(10, dtype=torch.float64))
