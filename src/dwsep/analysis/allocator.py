"""The memory allocator in use, and how to keep glibc's from giving memory back between training steps.

Outputs of tens of megabytes are allocated and freed at every step. glibc maps the large ones anew each time and gives
free memory at the end of its heap back to the system, which then hands out zeroed pages one fault at a time: up to a
third of a step. docs/design/allocator.md has the measurements behind the calls below.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

_OTHERS = ("jemalloc", "tcmalloc", "mimalloc", "tbbmalloc_proxy", "snmalloc", "asan", "tsan")
# Name -> (number of the parameter in malloc.h, value).
_CALLS = {
    # Large blocks come from the heap too. A high M_MMAP_THRESHOLD would do as well, but older releases of glibc refuse
    # more than 32 MiB.
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, -1),  # never: 2^31 - 1 would still give back what lies above 2 GiB
    "M_TOP_PAD": (-2, 64 << 20),
}
# The same for a program that is not ours, as environment variables.
VARIABLES = " ".join(f"MALLOC_{name[2:]}_={value}" for name, (_, value) in _CALLS.items())

_applied: dict[str, int] = {}


def keep_freed_memory() -> str | None:
    """Has glibc keep the memory that this process frees, for its next allocations; for the rest of the process.

    The process then stays as large as it has been at its largest. Every other allocator, and a glibc that somebody has
    tuned, is left alone. Threads other than the main one gain for blocks below 64 MiB only.

    Returns:
        Why nothing was changed, or None where it was.

    Example:
        >>> from dwsep.analysis import keep_freed_memory
        >>> reason = keep_freed_memory()
    """
    reason = _reason_to_leave_alone()
    if reason is not None:
        return reason
    mallopt = ctypes.CDLL(None).mallopt
    for name, (parameter, value) in _CALLS.items():
        if mallopt(parameter, value) != 1:
            return f"mallopt refused {name}={value}"
        _applied[name] = value
    return None


def _reason_to_leave_alone() -> str | None:
    if os.environ.get("DWSEP_KEEP_ALLOCATOR", "0") not in ("", "0"):
        return "switched off by the environment variable DWSEP_KEEP_ALLOCATOR"
    name = allocator_name()
    if name != "glibc":
        return f"the allocator is {name}, not glibc's"
    tuned = [
        variable
        for variable, value in allocator_variables().items()
        if variable.startswith("MALLOC_") or (variable == "GLIBC_TUNABLES" and "glibc.malloc." in value)
    ]
    return f"it is tuned by {', '.join(tuned)}" if tuned else None


def allocator_name() -> str:
    """Names the allocator: "glibc", what stands in for it ("tcmalloc"), or "system" where nobody knows."""
    # One that is preloaded shows in the memory map, whichever way it was loaded.
    maps = _memory_map()
    loaded = [name for name in _OTHERS if f"/lib{name}" in maps]
    return ", ".join(loaded) or platform.libc_ver()[0] or "system"


def allocator_variables() -> dict[str, str]:
    """Lists the environment variables that choose or tune an allocator."""
    names = ("LD_PRELOAD", "GLIBC_TUNABLES")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_") or name in names}


def allocator_settings() -> dict[str, int]:
    """Lists what :func:`keep_freed_memory` has set in this process, by the names in malloc.h."""
    return dict(_applied)


def _memory_map() -> str:
    try:
        return Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
