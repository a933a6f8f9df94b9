"""Stopping a run between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after its checkpoint was written.

    Args:
        signal_number: The signal.
        checkpoint: The checkpoint, or None where the run writes none.
    """

    def __init__(self, signal_number: int, checkpoint: Path | None) -> None:
        where = f"continue from {checkpoint}" if checkpoint else "no checkpoint was written"
        super().__init__(f"training was interrupted; {where}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag while it is active; the second signal acts at once.

    Outside the main thread, where Python delivers no signals, the flag never rises.

    Args:
        patient: Whether the second signal acts no sooner than the first: torchrun sends one of its own after Ctrl-C,
            which would end a process while it saves.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        if not self.patient:
            self._restore()

    def _restore(self) -> None:
        # Taken first: a signal that arrives meanwhile comes here, too.
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
