"""Handle Ctrl-C, SIGTERM and a cluster's warning: finish the step, save, exit with 128 + signal.

with StopSignals() as signals:
    signals.defer_stop = True  # from now on, the training loop polls `signals.received`
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fashion_lit.errors import Stopped

# SIGHUP: the terminal was closed. SIGUSR1, SIGUSR2: SLURM's warning (sbatch --signal=USR1@60).
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
NOTICE = b"\nStopping after this step to save a checkpoint; press Ctrl-C again to stop now.\n"


def stop_signals() -> list[int]:
    """Return the numbers of this system's stop signals; Windows has only the first two NAMES."""
    return [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]


class StopSignals:
    """Context manager that turns stop signals into a flag or a `Stopped` exception.

    While `defer_stop` is True, the first signal only sets `received`; otherwise it raises
    `Stopped`. After the first signal, only Ctrl-C has an effect: it raises `Stopped`. Signals that
    are already handled or ignored (nohup, a launcher) keep their handlers, except handlers of
    Ctrl-C, which are replaced: an event loop's would do nothing until the training ends. Outside
    the main thread, where Python handles no signals, this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.defer_stop = False
        self._before: dict[int, Any] = {}
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                handler = signal.getsignal(number)
                if handler == signal.SIG_DFL or (number == signal.SIGINT and callable(handler)):
                    self._before[number] = handler
                elif handler is not None:  # None: not Python's
                    self._kept[number] = handler
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
        """Install the handlers; call it again after Lightning has replaced them with its own."""
        for number in self._before:
            signal.signal(number, self._handle)
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        if not is_first and number != signal.SIGINT:
            return  # a cluster signals the process, its group and its job for one stop
        if not is_first or not self.defer_stop:
            self.received = self.received or number
            raise Stopped(number)
        self.received = number
        os.write(2, NOTICE)  # print is not reentrant
