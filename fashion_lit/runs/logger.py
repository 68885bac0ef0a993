"""The TensorBoard logger of a run: events in the run directory."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from fashion_lit.runs.directory import EVENT_FILES


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard events into the run directory itself, and nothing beside them.

    Args:
        run_dir: the run directory; events of the run's earlier processes may be there.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)
        self.run_dir = run_dir
        self.goes_on = any(run_dir.glob(EVENT_FILES))
        self.trainer: Trainer | None = None  # whose steps are the points of the curves

    def flush(self) -> dict[str, int]:
        """Write out all events; returns the event files' names and sizes in bytes."""
        self.save()
        return {path.name: path.stat().st_size for path in self.run_dir.glob(EVENT_FILES)}

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at the optimizer steps done, without the `epoch` that Lightning adds.

        Lightning's `step` counts from this process's beginning after some restarts.
        """
        if self.trainer is not None:
            step = self.trainer.global_step
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)

    @override
    def save(self) -> None:
        """Flush the events; the configuration stands in config.yaml, not in a hparams.yaml."""
        self.experiment.flush()

    @override
    def finalize(self, status: str) -> None:
        """Flush the events, and go on in the same file: fit, validate and test each end so."""
        self.experiment.flush()
