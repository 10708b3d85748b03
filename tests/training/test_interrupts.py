"""Signals are noted, once, and only while somebody asks."""

import signal
import threading

import pytest

from penstock.training.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_does_not_interrupt(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        assert interrupts.pending is None
        signal.raise_signal(number)
        assert interrupts.pending == number.name


def test_a_second_ctrl_c_acts_at_once() -> None:
    # Python's own handler: a process started in the background may have come with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handlers_are_as_before_afterwards() -> None:
    def mine(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(ZeroDivisionError), Interrupts():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with Interrupts() as interrupts:
            seen.append((signal.getsignal(signal.SIGINT), interrupts.pending))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
