"""Read a run's training curves from its TensorBoard files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = list[tuple[int, float]]  # (TensorBoard step, value)


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Return all logged scalars of a run by tag, in the order of their steps.

    For example {"val/accuracy": [(187, 0.84), …]}.
    """
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: sorted((p.step, p.value) for p in events.Scalars(tag)) for tag in tags}
