"""Run commands in separate processes with time limits.

    turn = check.turn(limit=50)
    turn.run([*FASHION_LIT, "--version"]).out

This module must not import torch: the check must not use the GPU that its commands measure.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from results import Figures, Results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]  # the checkout's root
FASHION_LIT = (sys.executable, "-m", "fashion_lit")
TRAIN = (*FASHION_LIT, "train")
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SLOWER = 12  # factor on the time limits with --small, on a machine without a GPU


@dataclass(frozen=True)
class Check:
    """One execution of the check.

    Args:
        small: whether to use small models and data.
        work: a temporary folder for everything but the results.
        began: when it began, by `time.monotonic`.
        budget: its time limit in seconds.
        results: the results so far.
    """

    small: bool
    work: Path
    began: float
    budget: float
    results: Results

    def turn(self, limit: float) -> "Turn":
        """Begin a stage with a limit in seconds, at most the time left for the whole check."""
        ends = time.monotonic() + limit * (SLOWER if self.small else 1)
        return Turn(self, min(ends, self.began + self.budget))


@dataclass(frozen=True)
class Turn:
    """A stage's time slot: all that it runs is killed at its end.

    Args:
        check: the check that the stage is a part of.
        ends: when the slot ends, by `time.monotonic`.
    """

    check: Check
    ends: float

    @property
    def seconds_left(self) -> float:
        """The seconds until the slot ends."""
        return self.ends - time.monotonic()

    def in_small(self, *words: str) -> list[str]:
        """Return these command-line arguments with --small, else []."""
        return list(words) if self.check.small else []

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> "Process":
        """Start a command in `folder`, with the project's code from there."""
        return Process(self.check, command, environment or {}, folder)

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> "Done":
        """Run a command in `folder`, with the project's code from there, until it ends."""
        return self.start(command, environment, folder).wait(self.seconds_left)

    def probe(self, *arguments: str) -> Figures:
        """Run a probe; returns its figures, or {"failed": reason}."""
        done = self.run([sys.executable, str(HERE / "probes.py"), *arguments])
        if not done.ok:
            ending = "too long" if done.code is None else f"exit {done.code}"
            return {"failed": done.last_words or ending}
        return json.loads(done.out.strip().splitlines()[-1])


@dataclass(frozen=True)
class Done:
    """The result of a command.

    Args:
        code: the exit code; None if it was killed because it took too long.
        seconds: its duration.
        out: its standard output.
        err: its standard error.
    """

    code: int | None
    seconds: float
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.code == 0

    @property
    def last_words(self) -> str:
        """The last non-empty line of its output, at most 300 characters."""
        lines = [line for line in (self.out + self.err).splitlines() if line.strip()]
        return lines[-1][-300:] if lines else ""


class Process:
    """A command in a separate process group, so that its child processes are killed with it.

    Args:
        check: its results log the output if the command fails.
        command: the command line.
        environment: variables in addition to those of this process.
        folder: the working directory, from which the project's code is imported.
    """

    def __init__(
        self, check: Check, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.check = check
        self.command = command
        given = os.environ.get("PYTHONPATH")
        code = {"PYTHONPATH": os.pathsep.join([str(folder), *([given] if given else [])])}
        screen = check.work / f"screen_{uuid.uuid4().hex}"
        self.screen = [screen.with_suffix(suffix) for suffix in (".out", ".err")]
        self.began = time.monotonic()
        with self.screen[0].open("wb") as out, self.screen[1].open("wb") as err:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **code, **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        """Whether it is still running."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> Done:
        """Wait until it ends, and kill it after `seconds`."""
        code: int | None
        try:
            code = self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            code = None
        took = time.monotonic() - self.began
        done = Done(code, took, *(file.read_text("utf-8", "replace") for file in self.screen))
        if not done.ok:
            self.check.results.add_log(
                f"\n### {' '.join(self.command[1:])}\n# exit {code} after {took:.1f} s\n"
                f"{done.out[-6000:]}{done.err[-8000:]}"
            )
        return done
