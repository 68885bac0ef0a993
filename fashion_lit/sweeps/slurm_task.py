"""What runs on a cluster's node: one command, stopped in time and queued again.

It imports little, so that the process that waits for the command costs little memory.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from submitit.helpers import DelayedSubmission


class SlurmTask:
    """A command that submitit runs, and queues again when its time is up or it is preempted.

    Args:
        command: its words; typed again, it goes on where it was.
        environment: variables for its process, beside those of the job.
        log_file: what its output is appended to.
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
        """Stop the command and wait until it has saved; returns what to queue again.

        A signal handler of submitit calls it, so it may interrupt `__call__` in the middle of
        `wait`, whose lock must not be asked for again.
        """
        if self._process_id is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process_id, signal.SIGTERM)
                os.waitid(os.P_PID, self._process_id, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTask(self.command, self.environment, self.log_file))
