"""Ensembles of trained runs, whose members or weights are chosen on validation images alone.

ensemble = select([Path("sweeps/lr/a"), Path("sweeps/lr/b")], num_rounds=5)
ensemble.named_weights  # {"a": 0.8, "b": 0.2}
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from tqdm import tqdm

from fashion_lit.errors import UserError
from fashion_lit.evaluation.calibration import as_logits, calibrated_log_loss, fit_temperature
from fashion_lit.evaluation.narrative import describe_fitted_weights, describe_selection
from fashion_lit.evaluation.predictions import Predictions, same_images
from fashion_lit.training.inference import predict
from fashion_lit.training.loading import Run, load_run

NUM_ITERATIONS = 300  # at most, of the fit of weights
ENSEMBLES = ("ensemble", "weighted ensemble", "selected ensemble")  # names in tables


@dataclass(frozen=True)
class TrainedEnsemble:
    """One trained run, or several whose probabilities are averaged.

    Args:
        models: the runs.
        name: what tables call several of them, of ENSEMBLES.
        weights: the weight of each run; None: all are equal.
        weighing: sentences on where the weights come from.
    """

    models: Sequence[Run]
    name: str = ENSEMBLES[0]
    weights: Sequence[float] | None = None
    weighing: str = ""

    @property
    def names(self) -> list[str]:
        """The runs' names; their paths if these, with an ensemble's, are not distinct."""
        names = [model.name for model in self.models]
        if len(names) == 1 or len({*names, *ENSEMBLES}) == len(names) + len(ENSEMBLES):
            return names
        paths = [model.directory for model in self.models]
        if len(set(paths)) == len(paths):
            return [path.as_posix() for path in paths]
        return [model.checkpoint.absolute().as_posix() for model in self.models]

    @property
    def named_weights(self) -> dict[str, float]:
        """The weights by the runs' names; {} if all are equal."""
        return dict(zip(self.names, self.weights, strict=True)) if self.weights else {}


def refuse_test_images(name: str) -> NoReturn:
    """Raise UserError for a run whose validation images are its test images."""
    raise UserError(
        "Expected runs with validation images of their own, to choose an ensemble on them, but "
        f"those of {name} are the test images (data.validate_on_test=true); leave it out."
    )


def select(
    candidates: Sequence[Path], num_rounds: int, data_root: str | None = None
) -> TrainedEnsemble:
    """Select an ensemble on validation images and load its members; print what they are.

    Of each candidate only the probabilities stay in memory. Raises UserError if the validation
    images differ, or if fewer than two candidates can be loaded.

    Args:
        candidates: directories of finished runs.
        num_rounds: how often a run is added, as in `select_members`.
        data_root: the folder of their data, if it was moved since.
    """
    found: dict[Path, Predictions] = {}
    for path in tqdm(candidates, desc="predict", unit="run", disable=None, leave=False):
        try:
            model = load_run(path, data_root=data_root).load()
        except UserError as error:
            tqdm.write(f"Left out: {path}: {error}", file=sys.stdout)
            continue
        predictions = predict(model, "val")
        first = next(iter(found.values()), predictions)
        if not torch.equal(first.images, predictions.images):
            raise UserError(
                f"Expected runs on the same images to select from, but those of {path} differ from "
                f"those of {next(iter(found))} (data.split_seed, data.val_size, …); leave one out."
            )
        found[path] = replace(first, probabilities=predictions.probabilities)
    if len(found) < 2:
        raise UserError("Expected two runs or more to select from, but the others are damaged.")
    counts = select_members(list(found.values()), num_rounds)
    chosen = {path: count for path, count in zip(found, counts, strict=True) if count}
    print(f"Selected from {len(found):,} runs:")
    print("\n".join(f"  {count} × {path}" for path, count in chosen.items()))
    models = [load_run(path, data_root=data_root).load() for path in chosen]
    weights = [count / num_rounds for count in chosen.values()]
    selected = TrainedEnsemble(models, ENSEMBLES[2], weights)
    named = dict(zip(selected.names, chosen.values(), strict=True))
    num_images = len(next(iter(found.values())).labels)
    return replace(selected, weighing=describe_selection(named, len(found), num_images))


def select_members(candidates: Sequence[Predictions], num_rounds: int) -> list[int]:
    """Select an ensemble greedily; return how often each candidate is in it.

    Each round adds the candidate, which may be in the ensemble already, with which the ensemble's
    `calibrated_log_loss` is smallest; of equal ones the first. This is selection with replacement
    in Caruana et al. 2004, "Ensemble selection from libraries of models". The accuracy has many
    ties, and the log-loss itself prefers confident candidates to accurate ones.

    Args:
        candidates: predictions of the same images.
        num_rounds: the sum of the counts.
    """
    labels = candidates[0].labels
    counts = [0] * len(candidates)
    total = torch.zeros_like(candidates[0].probabilities)
    for size in range(1, num_rounds + 1):
        losses = [calibrated_log_loss((total + c.probabilities) / size, labels) for c in candidates]
        best = losses.index(min(losses))
        counts[best] += 1
        total = total + candidates[best].probabilities
    return counts


def with_fitted_weights(plain: TrainedEnsemble, members: Sequence[Predictions]) -> TrainedEnsemble:
    """Return an ensemble whose weights are fitted to its members' validation predictions."""
    same_images(members)
    fitted = replace(plain, name=ENSEMBLES[1], weights=fit_weights(members))
    text = describe_fitted_weights(fitted.named_weights, len(members[0].labels))
    return replace(fitted, weighing=text)


def fit_weights(members: Sequence[Predictions]) -> list[float]:
    """Return the weights of an ensemble's members with the smallest log-loss at its temperature.

    The ensemble's temperature is fitted with the weights, because the log-loss alone would favour
    the most confident members, such as those trained without label smoothing. L-BFGS descends from
    equal weights, which are the softmax of scores, so it ends at a local minimum at least.

    Args:
        members: predictions of the same images.

    Returns:
        A weight for each member, not negative; their sum is 1.
    """
    labels = members[0].labels.clone()  # autograd takes no tensor of the inference mode
    rows = torch.stack([member.probabilities.double() for member in members])  # (M, N, C)
    scores = torch.zeros(len(rows), dtype=torch.float64, requires_grad=True)
    start = fit_temperature(rows.mean(0), labels)
    log_temperature = torch.tensor(math.log(start), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores, log_temperature],
        max_iter=NUM_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimizer.zero_grad()
        together = torch.einsum("m,mnc->nc", scores.softmax(0), rows)
        value = F.cross_entropy(as_logits(together) / log_temperature.exp(), labels)
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return scores.detach().softmax(0).tolist()
