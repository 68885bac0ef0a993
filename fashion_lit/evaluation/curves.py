"""A run's curves, as TensorBoard's files have them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = list[tuple[int, float]]  # (TensorBoard's step, value)


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Return every scalar that a run has logged, by its tag: {"val/accuracy": [(187, 0.84), …]}."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in tags}
