"""How busy other processes kept the machine during a measurement, which decides how far to trust it."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IDLE = (3, 4)  # places of "idle" and "iowait" among the figures of a "cpu" line
_COUNTED = 8  # user to steal; the guest figures after them are part of user


class OtherProcesses:
    """Measures how many cores everything but this process keeps busy, from its construction on.

    A virtual machine whose host takes cores away counts that as busy too.
    """

    def __init__(self, stat: str | Path = "/proc/stat") -> None:
        self._stat = Path(stat)
        self._started = time.monotonic()
        self._busy = self._busy_elsewhere()

    def cores(self) -> float | None:
        """Returns the average number of cores in use by others so far, or None where the system does not say."""
        busy, seconds = self._busy_elsewhere(), time.monotonic() - self._started
        if busy is None or self._busy is None or seconds <= 0:
            return None
        return max(0.0, (busy - self._busy) / seconds)

    def _busy_elsewhere(self) -> float | None:
        try:
            name, *figures = self._stat.read_text(encoding="ascii").split("\n", 1)[0].split()
            ticks = [int(figure) for figure in figures[:_COUNTED]]
            per_second = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        if name != "cpu" or len(ticks) <= max(_IDLE):
            return None
        return (sum(ticks) - sum(ticks[place] for place in _IDLE)) / per_second - time.process_time()


def describe_disturbance(other_cores: float | None, threads: int, cores: int | None) -> str | None:
    """Says so if other processes left a measurement fewer cores than it had threads.

    Args:
        other_cores: Cores that others kept busy, on average.
        threads: Threads of the measurement.
        cores: Cores of the machine.

    Returns:
        A sentence, or None where nothing disturbed it, or nobody knows.
    """
    if other_cores is None or cores is None or other_cores + threads <= cores + 0.25:
        return None
    return (
        f"other processes kept {other_cores:.1f} of {cores} cores busy meanwhile: the times are longer than they need "
        "to be, and not all by the same factor"
    )
