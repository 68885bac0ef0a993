"""Temperature scaling: one number, fitted on validation images, that calibrates probabilities.

    calibration = calibrate(predict(model, "val"), predict(model, "test"), class_names)
    calibration.temperature, calibration.scores.calibration_error

Guo et al. 2017, "On Calibration of Modern Neural Networks". Softmax of logits / T is proportional
to the probabilities to the power of 1 / T, so probabilities are enough, also those of an ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_lit.evaluation.predictions import Predictions
from fashion_lit.evaluation.scores import Scores, score

LOWEST, HIGHEST = 0.01, 100.0  # temperatures
NUM_HALVINGS = 60  # of their interval, which then is narrower than float64 resolves


@dataclass(frozen=True)
class Calibration:
    """Predictions calibrated by a temperature.

    Args:
        temperature: more than 1 lowers the confidence of the predictions, less than 1 raises it.
        scores: scores of the calibrated probabilities.
    """

    temperature: float
    scores: Scores


def calibrate(
    fitted_on: Predictions, predictions: Predictions, class_names: Sequence[str]
) -> Calibration:
    """Fit a temperature on some predictions and apply it to `predictions`, which may be the same.

    Args:
        fitted_on: predictions of validation images.
        predictions: predictions of the same model.
        class_names: names of the classes, in the order of the labels.
    """
    temperature = fit_temperature(fitted_on.probabilities, fitted_on.labels)
    calibrated = apply_temperature(predictions.probabilities, temperature)
    return Calibration(temperature, score(calibrated, predictions.labels, class_names))


def calibrated_log_loss(probabilities: Tensor, labels: Tensor) -> float:
    """Return the log-loss at the temperature with the smallest one, in nats.

    Unlike the log-loss itself it does not favour a model for its confidence alone, such as one
    without label smoothing. The temperature is exact to 0.2 %, the loss to about 1e-6.
    """
    temperature = fit_temperature(probabilities, labels, num_halvings=12)
    likelihood = apply_temperature(probabilities, temperature).gather(1, labels[:, None])
    return float(-as_logits(likelihood).mean())


def fit_temperature(
    probabilities: Tensor, labels: Tensor, *, num_halvings: int = NUM_HALVINGS
) -> float:
    """Return the temperature with the smallest log-loss, in [LOWEST, HIGHEST].

    The log-loss is convex in 1 / T, so its derivative changes its sign at most once: bisection
    finds where. The lowest temperature is returned if no image is classified wrongly.

    Args:
        probabilities: (N, C), each row sums to 1.
        labels: true classes (N,) int64.
        num_halvings: of the interval of temperatures.
    """
    logits = as_logits(probabilities)
    of_label = logits.gather(1, labels[:, None])[:, 0]
    low, high = LOWEST, HIGHEST
    for _ in range(num_halvings):
        temperature = (low * high) ** 0.5
        expected = ((logits / temperature).softmax(1) * logits).sum(1)
        if expected.mean() > of_label.mean():  # too confident
            low = temperature
        else:
            high = temperature
    return (low * high) ** 0.5


def apply_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Return the probabilities (N, C) float64 of logits divided by a temperature."""
    return (as_logits(probabilities) / temperature).softmax(1)


def as_logits(probabilities: Tensor) -> Tensor:
    """Return log-probabilities (N, C) float64, finite also where a probability underflowed to 0."""
    return probabilities.double().clamp(min=torch.finfo(torch.float32).tiny).log()
