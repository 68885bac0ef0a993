import signal
from types import FrameType

import pytest

from fashion_lit.errors import Stopped
from fashion_lit.runs.signals import NAMES, StopSignals


def test_first_signal_is_deferred_and_the_second_raises(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with StopSignals() as signals:
        signals.defer_stop = True
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert "Stopping after this step" in capfd.readouterr().err
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.value.exit_code == 130


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(signal, n)])
def test_outside_training_a_signal_raises_at_once(name: str) -> None:
    number = getattr(signal, name)
    with StopSignals(), pytest.raises(Stopped) as stop:
        signal.raise_signal(number)
    assert (stop.value.name, stop.value.exit_code) == (name, 128 + number)


def test_other_handlers_are_kept_and_ours_are_removed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        with StopSignals() as signals:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Lightning does
            signals.listen()
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) != interrupt
        assert signal.getsignal(signal.SIGINT) == interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_event_loops_handler_of_ctrl_c_is_replaced_meanwhile() -> None:
    def loops(number: int, frame: FrameType | None) -> None:
        pytest.fail("the training would not stop")

    before = signal.signal(signal.SIGINT, loops)
    try:
        with StopSignals() as signals:
            signals.defer_stop = True
            signal.raise_signal(signal.SIGINT)
            assert signals.received == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == loops
    finally:
        signal.signal(signal.SIGINT, before)
