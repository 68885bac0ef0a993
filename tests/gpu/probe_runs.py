"""The probes of finished runs: their checkpoints and curves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fashion_lit.evaluation.curves import read_curves

COMPARED = ("state_dict", "optimizer_states", "train_metrics")
SCORES = ("val/accuracy", "val/loss")


def compare(first: str, second: str) -> dict[str, Any]:
    """Return how two checkpoints differ in weights, optimizer state and scores."""
    one, other = (torch.load(p, map_location="cpu", weights_only=True) for p in (first, second))
    pairs = {path: pair for key in COMPARED for path, *pair in walk(one[key], other[key], key)}
    unequal = [path for path, (a, b) in pairs.items() if not torch.equal(a, b)]
    gaps = [
        float((pairs[path][0].double() - pairs[path][1].double()).abs().max())
        for path in unequal
        if pairs[path][0].shape == pairs[path][1].shape
    ]
    scalers = [checkpoint.get("MixedPrecision", {}) for checkpoint in (one, other)]
    steps = [checkpoint["global_step"] for checkpoint in (one, other)]
    return {
        "equal": not unequal and scalers[0] == scalers[1] and steps[0] == steps[1],
        "tensors": len(pairs),
        "unequal": len(unequal),
        "first_unequal": unequal[:3],
        "greatest_gap": max(gaps, default=0.0),
        "scores": [scores(checkpoint) for checkpoint in (one, other)],
        "steps": steps,
        "scale": [scaler.get("scale") for scaler in scalers],
    }


def walk(a: Any, b: Any, path: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (path, tensor, tensor) for every tensor of two nested values of the same structure."""
    if isinstance(a, Tensor):
        yield path, a, b
    elif isinstance(a, dict):
        for key in a:
            yield from walk(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from walk(x, y, f"{path}/{number}")


def scores(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Return the validation metrics in a checkpoint."""
    metrics = checkpoint["run"]["metrics"]
    return {key: float(metrics[key]) for key in SCORES if key in metrics}


def scalars(run_dir: str, *tags: str) -> dict[str, list[float]]:
    """Return the values of these curves of a run: {tag: [value, …]}; [] for an absent tag."""
    curves = read_curves(Path(run_dir))
    return {tag: [value for _, value in curves.get(tag, [])] for tag in tags}
