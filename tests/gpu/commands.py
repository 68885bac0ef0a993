"""Commands in processes of their own, each of which ends in time.

    turn = check.turn(limit=50)
    turn.run([*FASHION_LIT, "--version"]).out

Nothing here imports torch: the check itself must not hold the GPU that its commands measure.
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
ROOT = HERE.parents[1]  # of the checkout
FASHION_LIT = (sys.executable, "-m", "fashion_lit")
TRAIN = (*FASHION_LIT, "train")
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SLOWER = 12  # times as long may a stage take in miniature, on a machine without a GPU


@dataclass(frozen=True)
class Check:
    """A check from its beginning to its end.

    Args:
        small: in miniature.
        work: the folder of everything but the results; goes away at the end.
        began: a moment of `time.monotonic`.
        budget: seconds in all.
        results: what was found so far.
    """

    small: bool
    work: Path
    began: float
    budget: float
    results: Results

    def turn(self, limit: float) -> "Turn":
        """Begin a stage that may take `limit` seconds, and no longer than the check."""
        ends = time.monotonic() + limit * (SLOWER if self.small else 1)
        return Turn(self, min(ends, self.began + self.budget))


@dataclass(frozen=True)
class Turn:
    """A stage's turn: what it runs ends when it does.

    Args:
        check: which it is a part of.
        ends: a moment of `time.monotonic`.
    """

    check: Check
    ends: float

    @property
    def seconds_left(self) -> float:
        """How long it may still take."""
        return self.ends - time.monotonic()

    def in_small(self, *words: str) -> list[str]:
        """Return these words of a command in miniature, none of them otherwise."""
        return list(words) if self.check.small else []

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> "Process":
        """Start a command over the project's code in `folder`."""
        return Process(self.check, command, environment or {}, folder)

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> "Done":
        """Run a command over the project's code in `folder` to its end."""
        return self.start(command, environment, folder).wait(self.seconds_left)

    def probe(self, *arguments: str) -> Figures:
        """Run a probe; returns what it found, or {"failed": why}."""
        done = self.run([sys.executable, str(HERE / "probes.py"), *arguments])
        if not done.ok:
            ending = "too long" if done.code is None else f"exit {done.code}"
            return {"failed": done.last_words or ending}
        return json.loads(done.out.strip().splitlines()[-1])


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Args:
        code: the exit code; None: it took too long.
        seconds: how long it took.
        out: what it printed.
        err: what it said on standard error.
    """

    code: int | None
    seconds: float
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def last_words(self) -> str:
        """The last line of all that it said."""
        lines = [line for line in (self.out + self.err).splitlines() if line.strip()]
        return lines[-1][-300:] if lines else ""


class Process:
    """A command in a process group of its own, so that all it starts can be killed with it.

    Args:
        check: whose results keep what it says if it fails.
        command: what to run.
        environment: variables beside those of this process.
        folder: where; the project's code is taken from there.
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
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to it and to all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> Done:
        """Wait until it ends, and kill it if it takes longer than that."""
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
