"""Read a run's training curves from its TensorBoard files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion_lit.files import event_files

Curve = list[tuple[int, float]]  # (TensorBoard step, value)
# TensorBoard shows groups of tags by name: this one after train and val, whose charts are curves,
# while a test is one point. Earlier versions named it "test".
TEST_GROUP = "withheld_test"


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Return all logged scalars of a run by tag, in the order of their steps.

    For example {"val/accuracy": [(187, 0.84), …]}. The tags of TEST_GROUP are "test/…", as in
    metrics.json. A damaged file gives the points before its damage.
    """
    curves: dict[str, Curve] = {}
    for path in event_files(run_dir):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 1})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = [(point.step, point.value) for point in events.Scalars(tag)]
            name = tag.replace(f"{TEST_GROUP}/", "test/", 1)
            curves.setdefault(name, []).extend(points)
    return {tag: sorted(points) for tag, points in curves.items()}
