"""A run is a directory: its configuration, status, metrics and checkpoints.

    run = RunDirectory(Path("runs/first"))
    with run.lock():
        run.create(config)
        run.write_status("running")
        run.write_metrics({"val/accuracy": 0.94})

This module only reads and writes files; it does not train.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fashion_lit.errors import UserError
from fashion_lit.files import digest_of_file, event_files, is_part, write_atomically
from fashion_lit.runs.data_records import read_data, text_of_data
from fashion_lit.runs.records import (
    STATUS_DIGEST,
    State,
    digest_of_object,
    is_intact,
    read_metrics,
    read_settings,
    read_status,
    read_text_of_run,
    with_config_digest,
)
from fashion_lit.text import quote_command

MAX_LISTED = 5  # runs in a message


class RunDirectory:
    """The files of one run, which has exactly one configuration.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locked_inode: int | None = None  # of the lock file, while this object holds it
        self.config_file = path / "config.yaml"
        self.status_file = path / "status.json"
        self.metrics_file = path / "metrics.json"
        self.data_file = path / "data.json"
        self.lock_file = path / ".lock"
        self.checkpoint_dir = path / "checkpoints"
        self.best_checkpoint = self.checkpoint_dir / "best.ckpt"
        self.last_checkpoint = self.checkpoint_dir / "last.ckpt"
        # The version of last.ckpt before the current one.
        self.previous_checkpoint = self.checkpoint_dir / "previous.ckpt"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against other processes; create it if it is missing.

        The operating system releases the lock when the process ends, even if it is killed. Raises
        UserError if another process holds the lock, if the directory contains files but no run, or
        if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files = [p for p in self.path.iterdir() if not is_part(p)]
            foreign = [p for p in files if p != self.lock_file]
            if foreign and self.is_config_intact and not self.config_file.exists():
                raise UserError(
                    f"Expected `run_dir` to be a new or empty directory, or a run's, but "
                    f"{self.path} contains other files; choose another."
                )
            lock = FileLock(self.lock_file, timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Expected an unlocked run directory, but {self._holder()} is training in "
                f"{self.path}; wait for it or stop it."
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = "it supports no file locks"
            if isinstance(error, FileExistsError | NotADirectoryError):
                reason = "it or a folder above it is a file or a broken link"
            elif isinstance(error, OSError):
                reason = error.strerror or str(error)
            raise UserError(
                f"Expected a writable run directory, but {self.path} is not ({reason}); choose "
                "another with run_dir= or output_root=."
            ) from None
        self._locked_inode = self.lock_file.stat().st_ino
        try:
            yield
        finally:
            self._locked_inode = None
            lock.release()

    @property
    def has_lost_lock(self) -> bool:
        """Whether the lock file was removed or replaced, so that another process may lock, too."""
        if self._locked_inode is None:
            return False
        try:
            return self.lock_file.stat().st_ino != self._locked_inode
        except OSError:
            return True

    def is_locked(self) -> bool:
        """Return whether a process is training in this directory."""
        try:
            with FileLock(self.lock_file, timeout=0):
                return False
        except Timeout:
            return True

    def _holder(self) -> str:
        status = self.status
        return f"process {status.get('process', '?')} on {status.get('host', 'an unknown host')}"

    @property
    def exists(self) -> bool:
        """Whether the directory contains a run."""
        return self.config_file.exists()

    def create(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration of a new run; the caller holds the lock."""
        assert not self.exists, "a run's configuration is written once"
        self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, replacing an existing one."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.config_file, with_config_digest(text))

    @property
    def has_config_digest(self) -> bool:
        """Whether config.yaml ends with a digest; earlier versions wrote none."""
        try:
            return is_intact(read_text_of_run(self.config_file)) is not None
        except UserError:
            return False

    @property
    def is_config_intact(self) -> bool:
        """Whether config.yaml is as the run wrote it; True if there is no run."""
        if not self.config_file.exists():
            files = (self.last_checkpoint, self.best_checkpoint, self.status_file)
            return not any(path.exists() for path in files)
        try:
            return bool(self.config)
        except UserError:
            return False

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration; raises UserError if it is damaged."""
        needs_digest = self.status.get("has_config_digest", False)
        return read_settings(self.config_file, needs_digest=needs_digest)

    @property
    def metrics(self) -> dict[str, float]:
        """The recorded metrics, {name: value}; raises UserError if they are damaged."""
        metrics = read_metrics(self.metrics_file)
        expected = self.status.get("files", {}).get(self.metrics_file.name)
        if expected is not None and digest_of_file(self.metrics_file) != expected:
            raise UserError(
                f"Expected {self.metrics_file} as the run wrote it, but it was changed since."
            )
        return metrics

    @property
    def data(self) -> dict[str, Any] | None:
        """What `describe_data` recorded, None if nothing; raises UserError if it is damaged."""
        return read_data(self.data_file) if self.data_file.exists() else None

    @property
    def status(self) -> dict[str, Any]:
        """The recorded status, or {} if there is none or it is damaged.

        Keys: "state"; "epoch" and "step", the numbers completed, and the "seconds" they took;
        "reason" of a stop or failure; "host" and "process" (its id) that train or trained last;
        "source_digest", the SHA-256 of the checkpoint that the run started from; of a finished run
        "files", the SHA-256 of its result's files by their path in the directory.
        """
        try:
            return read_status(self.status_file)
        except UserError:
            return {}

    @property
    def is_complete(self) -> bool:
        """Whether the run is finished, and its configuration and metrics are intact."""
        if self.status.get("state") != "finished":
            return False
        try:
            return bool(self.config) and "val/accuracy" in self.metrics
        except UserError:
            return False

    def write_status(
        self,
        state: State,
        *,
        progress: Mapping[str, float] | None = None,
        reason: str = "",
        source_digest: str | None = None,
    ) -> None:
        """Write the status; without `progress` or `source_digest`, keep the recorded one.

        Args:
            state: the run's state.
            progress: "epoch" and "step", the numbers completed, and the "seconds" they took.
            reason: why the run stopped or failed.
            source_digest: the SHA-256 of the checkpoint that the run started from.
        """
        before = self.status
        status = {
            "state": state,
            **{key: (progress or before).get(key, 0) for key in ("epoch", "step", "seconds")},
            "reason": reason,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "has_config_digest": before.get("has_config_digest", False) or self.has_config_digest,
            "source_digest": source_digest or before.get("source_digest"),
        }
        if state == "finished":
            checkpoints = [self.best_checkpoint, self.last_checkpoint]
            result = [self.metrics_file, *checkpoints, *event_files(self.path)]
            status["files"] = {
                path.relative_to(self.path).as_posix(): digest_of_file(path)
                for path in result
                if path.is_file()
            }
        status[STATUS_DIGEST] = digest_of_object(status)
        write_atomically(self.status_file, json.dumps(status, indent=2) + "\n")

    def write_data(self, data: Mapping[str, Any]) -> None:
        """Write the record of the run's data."""
        write_atomically(self.data_file, text_of_data(data))

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics, replacing existing ones."""
        write_atomically(self.metrics_file, json.dumps(dict(metrics), indent=2) + "\n")

    def rewind(self, event_sizes: Mapping[str, int]) -> None:
        """Remove temporary files and events written after a checkpoint, which the run writes again.

        Args:
            event_sizes: names and sizes in bytes of TensorBoard's files at that checkpoint.
        """
        for path in [p for p in self.path.rglob("*.part") if is_part(p)]:
            path.unlink()
        for path in event_files(self.path):
            if path.name not in event_sizes:
                path.unlink()
            elif path.stat().st_size > event_sizes[path.name]:
                os.truncate(path, event_sizes[path.name])


def run_of(path: Path) -> RunDirectory:
    """Return the run that a directory is, or that a file or folder in it belongs to.

    Raises UserError, which names the runs in the directory, if it is none.
    """
    for place in (path, *path.absolute().parents[:2]):
        if RunDirectory(place).exists:
            return RunDirectory(place)
    if not path.exists():
        raise UserError(f"Expected the directory of a run, but there is no {path}.")
    newest = sorted(
        (file.parent for file in path.glob("*/config.yaml")),
        key=lambda run: (run / "config.yaml").stat().st_mtime,
        reverse=True,
    )
    if not newest:
        raise UserError(
            f"Expected the directory of a run, but {path} belongs to none and holds none."
        )
    listed = ", ".join(str(run) for run in newest[:MAX_LISTED])
    more = f" and {len(newest) - MAX_LISTED:,} more" if len(newest) > MAX_LISTED else ""
    raise UserError(
        f"Expected the directory of a run, but {path} holds {len(newest):,}: {listed}{more} "
        "(newest first); name one of them, rank them by "
        f"{quote_command('fashion-lit', 'leaderboard', str(path))}, or choose an ensemble by "
        f"{quote_command('fashion-lit', 'evaluate', str(path), '--select', '5')}."
    )
