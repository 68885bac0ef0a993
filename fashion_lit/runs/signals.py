"""Ctrl-C, SIGTERM and a cluster's warning: finish the step, save, and leave with an honest code.

with StopSignals() as signals:
    signals.wait_for_a_good_moment = True  # from now on, whoever trains asks `signals.received`
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fashion_lit.errors import Stopped

# SIGHUP: the terminal was closed. SIGUSR1, SIGUSR2: SLURM's warning (sbatch --signal=USR1@60).
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
NOTICE = b"\nStopping after this step, to save it; press Ctrl-C again to end at once.\n"


def stop_signals() -> list[int]:
    """Return the numbers of the signals that ask for a stop; Windows has the first two only."""
    return [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]


class StopSignals:
    """Turns the first signal into a wish while training runs, and otherwise into `Stopped`.

    After it only Ctrl-C counts, which ends at once. Signals that somebody else handles or ignores
    (nohup, a launcher) are left alone.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.wait_for_a_good_moment = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                ours = (signal.SIG_DFL, signal.default_int_handler)
                if signal.getsignal(number) in ours:
                    self._before[number] = signal.getsignal(number)
            self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Install the handlers, again where Lightning has put its own in front of them."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        if not is_first and number != signal.SIGINT:
            return  # clusters signal a process, its group and its job; an impatient user, Ctrl-C
        if not is_first or not self.wait_for_a_good_moment:
            self.received = self.received or number
            raise Stopped(number)
        self.received = number
        os.write(2, NOTICE)  # print is not safe in the middle of another print
