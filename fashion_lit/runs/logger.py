"""The TensorBoard logger of a run, which writes events into the run directory."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from fashion_lit.evaluation.curves import TEST_GROUP
from fashion_lit.files import event_files

EventFiles = dict[str, tuple[int, str]]  # sizes in bytes and SHA-256 of event files, by name


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard events directly into the run directory, and no other files.

    Args:
        run_dir: the run directory; it may contain events of the run's earlier processes.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)
        self.run_dir = run_dir
        self.has_earlier_events = bool(event_files(run_dir))
        self._hashed: dict[Path, tuple[int, Any]] = {}  # bytes so far, and their SHA-256
        self._writer: SummaryWriter | None = None
        self.trainer: Trainer | None = None  # its global_step is the x value of all curves

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of this process's event file.

        TensorBoard reads the files of a directory in the order of the times in their names. If the
        clock was set back since an earlier file was created, the time in this one's name is a
        second after that file's instead.
        """
        if self._writer is None:
            names = [path.name.split(".") for path in event_files(self.run_dir)]
            times = [int(parts[3]) + 1 for parts in names if parts[3].isdecimal()]
            calls = iter([max([time.time(), *times])])  # the first call names the file
            clock = SimpleNamespace(time=lambda: next(calls, None) or time.time())
            with patch.object(event_file_writer, "time", clock):
                self._writer = SummaryWriter(str(self.run_dir))
        return self._writer

    def flush(self) -> dict[str, tuple[int, str]]:
        """Write all events to disk; return the event files' sizes in bytes and SHA-256, by name."""
        self.save()
        return {path.name: self._digest(path) for path in event_files(self.run_dir)}

    def _digest(self, path: Path) -> tuple[int, str]:
        """Hash what was added to a file since the last call."""
        size, digest = self._hashed.get(path, (0, hashlib.sha256()))
        with path.open("rb") as file:
            file.seek(size)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
        self._hashed[path] = (size, digest)
        return size, digest.hexdigest()

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at the trainer's global step, without the `epoch` that Lightning adds.

        After some restarts Lightning's `step` counts from the start of this process. Of a test,
        which is one point, the 30 scores by class are left out; they are in metrics.json.
        """
        if self.trainer is not None:
            step = self.trainer.global_step
        scalars = {
            name.replace("test/", f"{TEST_GROUP}/", 1): value
            for name, value in metrics.items()
            if name != "epoch" and not (name.startswith("test/") and name.count("/") > 1)
        }
        super().log_metrics(scalars, step)

    @override
    def save(self) -> None:
        """Flush the events; write no hparams.yaml, since config.yaml has the configuration."""
        self.experiment.flush()

    @override
    def finalize(self, status: str) -> None:
        """Flush the events and keep the file open: fit, validate and test each call this."""
        self.experiment.flush()

    def close(self) -> None:
        """Write all events and close the file."""
        if self._writer is not None:
            self._writer.close()


def flush_events(trainer: Trainer) -> EventFiles:
    """Write TensorBoard's events to disk; return its files' sizes in bytes and SHA-256."""
    return trainer.logger.flush() if isinstance(trainer.logger, RunLogger) else {}
