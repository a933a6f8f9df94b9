"""Signals that ask a run to stop, and a second one that arrives while the first is handled."""

from __future__ import annotations

import os
import signal

from dwsep.training import interrupt
from dwsep.training.interrupt import StopSignal


def test_a_signal_raises_the_flag_and_the_next_acts_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_signals_at_once(monkeypatch):
    """As `timeout make` sends them: one to each, and make passes its own on."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    plain, sent = signal.signal, []
    stop = StopSignal()

    def restore(number, handler):
        if not sent:
            sent.append(number)
            stop._handle(signal.SIGTERM, None)
        return plain(number, handler)

    with stop:
        monkeypatch.setattr(interrupt.signal, "signal", restore)
        stop._handle(signal.SIGTERM, None)
        assert stop.received == signal.SIGTERM
    assert sent
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
