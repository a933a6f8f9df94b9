"""How fast this machine multiplies and moves memory, measured in the same process and with the same threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dwsep.analysis._files import write_text_atomically
from dwsep.analysis.machine import describe_machine
from dwsep.ops import native_status

PEAKS = ("float32", "bfloat16")  # dtypes whose peak is measured
_PRODUCTS = (256, 512, 1024, 2048)  # rows
_WORKING_SETS = tuple(2**20 * size for size in (1, 2, 4, 8, 16, 32, 64, 512))  # bytes, source and target together


@dataclass(frozen=True)
class Ceilings:
    """What no kernel on this machine can exceed.

    Attributes:
        fma_peak: Float32 operations per second of multiply-adds on registers, in the instruction set in use; None
            where the native library is missing.
        matmul: Operations per second of the best matrix product seen, by dtype: a lower bound of the peak.
        copy: Bytes per second, read and written, of a copy, by the bytes of both buffers. Small copies stay in caches.
        isa: The instruction set of ``fma_peak``.
    """

    fma_peak: float | None
    matmul: dict[str, float]
    copy: dict[int, float]
    isa: str | None

    def peak(self, dtype: str) -> float:
        """Operations per second that count as the peak for a dtype."""
        best = self.matmul[dtype]
        return best if self.fma_peak is None else max(best, self.fma_peak)

    def bandwidth(self, working_set: int) -> float:
        """Bytes per second at which ``working_set`` bytes can be moved at most.

        It is that of the next smaller copy measured, so that what stays in a cache is not held to memory's pace.
        """
        sizes = sorted(self.copy)
        start = max((size for size in sizes if size <= working_set), default=sizes[0])
        return max(rate for size, rate in self.copy.items() if size >= start)

    @property
    def memory_bandwidth(self) -> float:
        """Bytes per second of the largest copy measured, which no cache holds."""
        return self.copy[max(self.copy)]

    def floor_seconds(self, macs: int, moved: int, dtype: str = "float32") -> float:
        """The larger of the times that so many multiply-adds, and so many bytes read and written, take at the least."""
        return max(self.arithmetic_seconds(macs, dtype), self.memory_seconds(moved))

    def arithmetic_seconds(self, macs: int, dtype: str = "float32") -> float:
        """Seconds that so many multiply-adds take at the peak."""
        return 2 * macs / self.peak(dtype)

    def memory_seconds(self, moved: int) -> float:
        """Seconds that so many bytes, read and written, take at the bandwidth of their number."""
        return moved / self.bandwidth(moved)

    def better_of(self, other: Ceilings) -> Ceilings:
        """The higher of each two figures: other work on the machine only ever makes them too low."""
        peaks = [peak for peak in (self.fma_peak, other.fma_peak) if peak is not None]
        return Ceilings(
            fma_peak=max(peaks, default=None),
            matmul={name: max(rate, other.matmul.get(name, 0.0)) for name, rate in self.matmul.items()},
            copy={size: max(rate, other.copy.get(size, 0.0)) for size, rate in self.copy.items()},
            isa=self.isa,
        )

    def to_json(self) -> dict[str, Any]:
        """The ceilings as JSON can hold them."""
        return {**asdict(self), "copy": {str(size): rate for size, rate in self.copy.items()}}

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Ceilings:
        """The inverse of :meth:`to_json`."""
        return Ceilings(**{**entry, "copy": {int(size): rate for size, rate in entry["copy"].items()}})


def measure_ceilings(dtype: str, *, seconds: float = 0.3) -> Ceilings:
    """Measures the ceilings, with the threads PyTorch uses.

    Args:
        dtype: Dtype of the matrix product, "float32" or "bfloat16"; float32 is always measured.
        seconds: How long each of about ten measurements goes on; the best attempt counts.

    Returns:
        The ceilings. Other work on the machine makes them too low.

    Example:
        >>> measure_ceilings("float32", seconds=0.001).peak("float32") > 1e6
        True
    """
    return Ceilings(
        fma_peak=_fma_peak(seconds),
        matmul={name: _matmul(getattr(torch, name), seconds) for name in sorted({"float32", dtype})},
        copy={size: _copy(size, seconds) for size in _WORKING_SETS},
        isa=native_status().isa,
    )


def _fma_peak(seconds: float) -> float | None:
    status = native_status()
    if not status.loaded:
        return None
    library = ctypes.CDLL(status.path)
    try:
        function = library.dwsep_fma_peak
    except AttributeError:  # a library from before it had one, named by DWSEP_LIBRARY
        return None
    function.argtypes, function.restype = [ctypes.c_double], ctypes.c_double
    return function(seconds)


def _matmul(dtype: torch.dtype, seconds: float) -> float:
    """The best rate of products of more and more rows, as long as one can be expected to take no more than a second.

    Where a processor has no instructions for a dtype, torch's product of two matrices of 2048 rows takes a minute.
    """
    rate = 0.0
    for size in _PRODUCTS:
        left, right = (torch.rand(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        best = _best(functools.partial(torch.mm, left, right, out=out), seconds if size == _PRODUCTS[-1] else 0)
        rate = max(rate, 2 * size**3 / best)
        if 8 * best > 1:
            break
    return rate


def _copy(working_set: int, seconds: float) -> float:
    elements = working_set // 8
    source, target = torch.ones(elements), torch.zeros(elements)
    return working_set / _best(lambda: target.copy_(source), seconds)


def _best(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of at least three calls."""
    call()
    best, calls, started = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
        calls += 1
    return best


def cached_ceilings(dtype: str, *, at_least: Callable[[Ceilings], bool] = lambda ceilings: True) -> Ceilings:
    """Returns this machine's ceilings from a file, or measures them and writes them there.

    The file is ``ceilings.json`` in ``$XDG_CACHE_HOME/dwsep`` (``~/.cache/dwsep``): measured are processor, cores,
    threads, instruction set and versions, each combination by itself. Ceilings measured while the machine was busy are
    too low: they are measured anew where a caller has seen more than they allow, and the higher figures kept.

    Args:
        dtype: "float32" or "bfloat16".
        at_least: Whether some ceilings allow what the caller has seen.

    Returns:
        The ceilings.
    """
    path = _cache_folder() / "ceilings.json"
    known, key = _read_cache(path), _cache_key()
    entry = known.get(key)
    ceilings = None if entry is None else Ceilings.from_json(entry)
    if ceilings is not None and dtype in ceilings.matmul and at_least(ceilings):
        return ceilings
    measured = measure_ceilings(dtype, seconds=0.15)
    ceilings = measured if ceilings is None else measured.better_of(ceilings)
    # A folder that cannot be written costs the next call three seconds, and nothing else.
    with contextlib.suppress(OSError):
        write_text_atomically(path, json.dumps({**known, key: ceilings.to_json()}, indent=1))
    return ceilings


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dwsep"


def _cache_key() -> str:
    machine = describe_machine()
    parts = (machine["cpu"], machine["usable_cores"], machine["torch_threads"], native_status().isa)
    return ", ".join(map(str, (*parts, torch.__version__, native_status().path)))


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
