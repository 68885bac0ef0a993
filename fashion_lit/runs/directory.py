"""A run is a directory: its configuration, status, metrics and checkpoints.

    run = RunDirectory(Path("runs/first"))
    with run.lock():
        run.create(config)
        run.write_status("running")
        run.write_metrics({"val/accuracy": 0.94})

This module only reads and writes files; it does not train.
"""

import hashlib
import json
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from fashion_lit.errors import UserError
from fashion_lit.files import is_part, read_text, write_atomically

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times as fast
DIGEST_MARK = "# sha256: "  # config.yaml ends with this and the digest of all before it
EVENT_FILES = "events.out.tfevents.*"

State = Literal["running", "interrupted", "failed", "pruned", "finished"]


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
            reason = error.strerror if isinstance(error, OSError) else "it supports no file locks"
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
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_atomically(self.config_file, f"{text}{DIGEST_MARK}{digest}\n")

    @property
    def has_config_digest(self) -> bool:
        """Whether config.yaml ends with a digest; earlier versions wrote none."""
        return self.exists and DIGEST_MARK.encode() in self.config_file.read_bytes()

    @property
    def is_config_intact(self) -> bool:
        """Whether config.yaml matches its digest.

        Also True if an earlier version wrote it, without a digest, or if the directory has neither
        config.yaml nor a checkpoint.
        """
        try:
            content = self.config_file.read_bytes()
        except OSError:
            return not (self.last_checkpoint.exists() or self.best_checkpoint.exists())
        text, mark, digest = content.rpartition(DIGEST_MARK.encode())
        if not mark:
            return not self.status.get("has_config_digest", False)
        return hashlib.sha256(text).hexdigest().encode() == digest.strip()

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration; raises UserError if it cannot be read or is empty."""
        try:
            config = yaml.load(read_text(self.config_file), YAML_LOADER)
        except Exception as error:
            raise UserError(
                f"Expected the settings of a run in {self.config_file}, but they cannot be read "
                f"({str(error).splitlines()[0]}); restore the file, or use another directory."
            ) from None
        if not isinstance(config, dict) or not config:
            raise UserError(
                f"Expected the settings of a run in {self.config_file}, but it has none; restore "
                "the file, or use another directory."
            )
        return {str(key): value for key, value in config.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """The recorded metrics, {name: value}."""
        return json.loads(read_text(self.metrics_file))

    @property
    def status(self) -> dict[str, Any]:
        """The recorded status, or {} if there is none.

        Keys: "state"; "epoch" and "step", the numbers completed, and the "seconds" they took;
        "reason" of a stop or failure; "host" and "process" (its id) that train or trained last.
        """
        try:
            status = json.loads(read_text(self.status_file))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) and "state" in status else {}

    def write_status(
        self, state: State, *, progress: Mapping[str, float] | None = None, reason: str = ""
    ) -> None:
        """Write the status; without `progress`, keep the recorded one.

        Args:
            state: the run's state.
            progress: "epoch" and "step", the numbers completed, and the "seconds" they took.
            reason: why the run stopped or failed.
        """
        before = self.status
        status = {
            "state": state,
            **{key: (progress or before).get(key, 0) for key in ("epoch", "step", "seconds")},
            "reason": reason,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "has_config_digest": before.get("has_config_digest", False) or self.has_config_digest,
        }
        write_atomically(self.status_file, json.dumps(status, indent=2) + "\n")

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics, replacing existing ones."""
        write_atomically(self.metrics_file, json.dumps(dict(metrics), indent=2) + "\n")

    def rewind(self, event_files: Mapping[str, int]) -> None:
        """Remove temporary files and events written after a checkpoint, which the run writes again.

        Args:
            event_files: names and sizes in bytes of TensorBoard's files at that checkpoint.
        """
        for path in [p for p in self.path.rglob("*.part") if is_part(p)]:
            path.unlink()
        for path in self.path.glob(EVENT_FILES):
            if path.name not in event_files:
                path.unlink()
            elif path.stat().st_size > event_files[path.name]:
                os.truncate(path, event_files[path.name])

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        text = self.path.as_posix()
        plain = all(c.isalnum() or c in "/._-:~" for c in text)
        override = f"run_dir={text}" if plain else f'run_dir="{text}"'
        return quote_command("fashion-lit", "train", override)


def quote_command(*words: str) -> str:
    """Return the words as one command line, quoted for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
