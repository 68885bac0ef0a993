"""Weights and selections of drawn members, against scipy and a loop that counts."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.metrics import log_loss

from fashion_lit.data.randomness import generator
from fashion_lit.evaluation.calibration import calibrated_log_loss
from fashion_lit.evaluation.predictions import Predictions, ensemble
from fashion_lit.training.ensembles import TrainedEnsemble, fit_weights, select_members

NUM_IMAGES = 400


def drawn(num_members: int, seed: int) -> list[Predictions]:
    """Draw models of different quality and confidence that predict the same images."""
    signal = 2 * torch.randn(NUM_IMAGES, 10, generator=generator(seed))
    labels = torch.multinomial(signal.softmax(1), 1, generator=generator(seed, 1))[:, 0]
    images = torch.zeros(NUM_IMAGES, 1, 1, dtype=torch.uint8)
    members = []
    for i in range(num_members):
        noise = torch.randn(NUM_IMAGES, 10, generator=generator(seed, 2, i))
        logits = (0.5 + 0.4 * i) * (signal + (1 + i % 3) * noise)
        members.append(Predictions(logits.softmax(1), labels, images))
    return members


def perfect(like: Predictions) -> Predictions:
    return Predictions(torch.eye(10)[like.labels], like.labels, like.images)


def loss_of(members: list[Predictions], weights: list[float] | None = None) -> float:
    """The log-loss at the best temperature."""
    together = ensemble(members, weights)
    return calibrated_log_loss(together.probabilities, together.labels)


@pytest.mark.parametrize("num_members", [2, 3, 6])
def test_fitted_weights_have_the_least_calibrated_log_loss_that_scipy_finds(
    num_members: int,
) -> None:
    members = drawn(num_members, num_members)
    weights = fit_weights(members)
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    rows = np.stack([m.probabilities.double().numpy() for m in members])
    labels = members[0].labels.numpy()

    def loss(w_and_inverse_temperature: np.ndarray) -> float:
        *w, inverse = w_and_inverse_temperature
        scaled = np.tensordot(w, rows, 1) ** inverse
        return -np.log(scaled[np.arange(NUM_IMAGES), labels] / scaled.sum(1)).mean()

    found = minimize(
        loss,
        [*np.full(num_members, 1 / num_members), 1],
        method="SLSQP",
        bounds=[*[(0, 1)] * num_members, (0.01, 100)],
        constraints={"type": "eq", "fun": lambda x: x[:-1].sum() - 1},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    assert loss_of(members, weights) == pytest.approx(found.fun, abs=1e-5)
    np.testing.assert_allclose(weights, found.x[:-1], atol=0.01)


def test_fitted_weights_are_never_worse_than_the_mean_or_the_best_member() -> None:
    for seed in range(5):
        members = drawn(4, seed)
        fitted = loss_of(members, fit_weights(members))
        assert fitted <= loss_of(members)
        assert fitted <= min(loss_of([member]) for member in members)


def test_a_copy_changes_nothing_and_a_perfect_member_leaves_no_loss() -> None:
    members = drawn(3, 0)
    once, twice = fit_weights(members), fit_weights([*members, members[2]])
    assert [*twice[:2], twice[2] + twice[3]] == pytest.approx(once, abs=0.01)
    with_perfect = [members[0], perfect(members[0]), members[1]]
    together = ensemble(with_perfect, fit_weights(with_perfect))
    assert bool(together.correct.all())


def test_members_that_are_certain_and_wrong_have_finite_weights() -> None:
    (member,) = drawn(1, 0)
    wrong = Predictions(torch.eye(10)[(member.labels + 1) % 10], member.labels, member.images)
    assert fit_weights([wrong, wrong]) == pytest.approx([0.5, 0.5])
    assert fit_weights([wrong, member])[1] > 0.95


def counted_selection(members: list[Predictions], num_rounds: int) -> list[int]:
    """Select as `select_members` does, with scipy's temperature and a list of what was chosen."""

    def loss(chosen: list[int]) -> float:
        mean = np.mean([members[i].probabilities.double().numpy() for i in chosen], axis=0)

        def at(log_temperature: float) -> float:
            scaled = mean ** (1 / np.exp(log_temperature))
            exact = scaled / scaled.sum(1, keepdims=True)
            return log_loss(members[0].labels, exact, labels=range(10))

        return float(minimize_scalar(at, bounds=(-3, 3), method="bounded").fun)  # pyright: ignore[reportAttributeAccessIssue]

    chosen: list[int] = []
    for _ in range(num_rounds):
        losses = [loss([*chosen, i]) for i in range(len(members))]
        chosen.append(losses.index(min(losses)))
    return [chosen.count(i) for i in range(len(members))]


def test_members_are_selected_as_a_counting_loop_selects_them() -> None:
    for seed in range(2):
        members = drawn(4, seed)
        counts = select_members(members, 5)
        assert counts == counted_selection(members, 5)
        assert sum(count > 0 for count in counts) > 1  # more than one is chosen, so order matters


def test_selections_grow_by_one_and_take_the_first_of_equals() -> None:
    members = drawn(4, 1)
    sizes = [select_members(members, n) for n in range(1, 6)]
    for fewer, more in pairwise(sizes):
        assert sorted(b - a for a, b in zip(fewer, more, strict=True)) == [0, 0, 0, 1]
    assert select_members([members[0], members[0]], 3) == [3, 0]
    assert select_members([*members, perfect(members[0])], 1) == [0, 0, 0, 0, 1]


def test_confidence_alone_neither_selects_a_member_nor_gives_it_weight() -> None:
    (good,) = drawn(1, 3)
    flat = Predictions((good.probabilities.log() / 9).softmax(1), good.labels, good.images)
    mixed = good.probabilities.roll(1, 0).lerp(good.probabilities, 0.6)
    worse = Predictions(mixed, good.labels, good.images)
    worse_loss, flat_loss = (
        log_loss(m.labels, m.probabilities.double().numpy(), labels=range(10))
        for m in (worse, flat)
    )
    assert worse_loss < flat_loss
    assert select_members([worse, flat], 1) == [0, 1]
    assert fit_weights([worse, flat])[1] > 0.9


def test_runs_with_the_same_name_keep_their_own_weights() -> None:
    def names(*places: str) -> list[str]:
        models: list[Any] = [
            SimpleNamespace(
                name=Path(place).parent.name,
                directory=Path(place).parent.absolute(),
                checkpoint=Path(place),
            )
            for place in places
        ]
        together = TrainedEnsemble(models, weights=[1 / len(models)] * len(models))
        assert len(together.named_weights) == len(models)
        return together.names

    here = Path.cwd().as_posix()
    assert names("s/a/best", "s/b/best") == ["a", "b"]
    assert names("s/a/best", "t/a/best") == [f"{here}/s/a", f"{here}/t/a"]
    assert names("s/ensemble/best", "s/b/best") == [f"{here}/s/ensemble", f"{here}/s/b"]
    assert names("s/a/best", "s/a/last") == [f"{here}/s/a/best", f"{here}/s/a/last"]
