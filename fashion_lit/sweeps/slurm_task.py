"""The task on a cluster node: run one command, stop it before its time limit and requeue it.

This module imports little, so that the process that waits for the command uses little memory.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from submitit.helpers import DelayedSubmission


class SlurmTask:
    """A command that submitit runs, and requeues at its time limit or when it is preempted.

    Args:
        command: its arguments; run again, it must resume where it stopped.
        environment: variables for its process, in addition to those of the job.
        log_file: the file to which its output is appended.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log_file: Path
    ) -> None:
        self.command = list(command)
        self.environment = dict(environment)
        self.log_file = log_file
        self._process_id: int | None = None

    def __call__(self) -> int:
        """Run the command; returns its exit code."""
        environment = {**os.environ, **self.environment}
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._process_id = process.pid
        return process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """Stop the command and wait until it has saved; returns the submission to requeue.

        submitit's signal handler calls this method, possibly while `__call__` is inside
        `Popen.wait` and holds its lock, so it must not call `Popen.wait` itself.
        """
        if self._process_id is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process_id, signal.SIGTERM)
                os.waitid(os.P_PID, self._process_id, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTask(self.command, self.environment, self.log_file))
