"""Run a function in a forked process, with its output in a file; Linux and macOS only."""

import math
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HUNG = 124  # the exit code, as that of the shell's `timeout`


@dataclass(frozen=True)
class Life:
    """How a process ended: its exit code, -signal if it was killed, and what it printed."""

    code: int
    text: str


def report(counts: Counter[str]) -> int:
    """Print how often each outcome was seen; returns the exit code, 1 if one is a FAULT."""
    for outcome, count in sorted(counts.items()):
        print(f"{count:>6}  {outcome}")
    return 1 if any("FAULT" in outcome for outcome in counts) else 0


def live(
    action: Callable[[], int], log: Path, *, seconds: float, stop_after: float = math.inf
) -> Life:
    """Run `action` in a forked process, continue it whenever it stops, and kill it if it hangs.

    Args:
        action: returns the exit code.
        log: a file for its output.
        seconds: how long it may take.
        stop_after: the seconds after which it gets SIGTERM.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 70
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = action()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    began = time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            time.sleep(0.05)
            os.kill(child, signal.SIGCONT)
        elif pid:
            return Life(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))
        elif time.monotonic() > began + stop_after:
            os.kill(child, signal.SIGTERM)
            stop_after = math.inf
        elif time.monotonic() > began + seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Life(HUNG, log.read_text(errors="replace"))
        time.sleep(0.01)
