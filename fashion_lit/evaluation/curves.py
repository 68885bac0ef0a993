"""Read a run's training curves from its TensorBoard files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion_lit.files import event_files

Curve = list[tuple[int, float]]  # (TensorBoard step, value)


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Return all logged scalars of a run by tag, in the order of their steps.

    For example {"val/accuracy": [(187, 0.84), …]}. A damaged file gives the points before its
    damage.
    """
    curves: dict[str, Curve] = {}
    for path in event_files(run_dir):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = [(point.step, point.value) for point in events.Scalars(tag)]
            curves.setdefault(tag, []).extend(points)
    return {tag: sorted(points) for tag, points in curves.items()}
