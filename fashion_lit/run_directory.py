"""A run is a directory: its configuration, status, metrics and checkpoints.

    run = RunDirectory.create(Path("runs/first"), config)
    run.write_status("running")
    run.write_metrics({"val/accuracy": 0.94})

It knows files only, not how they come about.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from omegaconf import OmegaConf

from fashion_lit.errors import UserError

State = Literal["running", "interrupted", "failed", "finished"]


class RunDirectory:
    """The files of one run; never shared by two configurations.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.status_file = path / "status.json"
        self.metrics_file = path / "metrics.json"
        self.checkpoint_dir = path / "checkpoints"
        self.best_checkpoint = self.checkpoint_dir / "best.ckpt"
        self.last_checkpoint = self.checkpoint_dir / "last.ckpt"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> Self:
        """Claim a new or empty directory and record the resolved configuration in it, once.

        Raises UserError if the directory holds anything, or if it cannot be written.
        """
        run = cls(path)
        taken = UserError(
            f"{path} already holds a run, and no run is ever overwritten; choose another run_dir "
            "(in a multirun, another sweep_name)."
        )
        try:
            path.mkdir(parents=True, exist_ok=True)
            if run.config_file.exists():
                raise taken
            if any(path.iterdir()):
                raise UserError(
                    f"Expected `run_dir` to be a new or empty directory, but {path} holds other "
                    "files; choose another."
                )
            try:
                file = run.config_file.open("x", encoding="utf-8")  # exactly one process wins
            except FileExistsError:
                raise taken from None
            with file:
                file.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        except OSError as error:
            raise UserError(
                f"Expected a run directory that can be written, but {path} cannot "
                f"({error.strerror}); choose another by run_dir= or output_root=."
            ) from None
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration."""
        config = OmegaConf.to_container(OmegaConf.load(self.config_file))
        assert isinstance(config, dict)
        return {str(key): value for key, value in config.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """The recorded metrics."""
        return json.loads(self.metrics_file.read_text(encoding="utf-8"))

    @property
    def status(self) -> dict[str, Any]:
        """The recorded status: "state", "epoch" and "step" that are done, "reason"."""
        return json.loads(self.status_file.read_text(encoding="utf-8"))

    def write_status(
        self, state: State, *, epoch: int | None = None, step: int | None = None, reason: str = ""
    ) -> None:
        """Record the state; epoch and step stay as they were unless given."""
        before = self.status if self.status_file.exists() else {"epoch": 0, "step": 0}
        status = {
            "state": state,
            "epoch": before["epoch"] if epoch is None else epoch,
            "step": before["step"] if step is None else step,
            "reason": reason,
        }
        write_atomically(self.status_file, json.dumps(status, indent=2))

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics."""
        write_atomically(self.metrics_file, json.dumps(dict(metrics), indent=2))


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`; whoever reads finds the old text or the new one."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
