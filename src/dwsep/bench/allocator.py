"""The settings of glibc's allocator under which everything is measured.

By default glibc maps a fresh tensor of tens of megabytes from the kernel and unmaps it at its end, so that every step
pays for its page faults again; which peer is hit how hard is a matter of sizes. With the thresholds raised it keeps the
memory. Both are read when a process starts.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping

ALLOCATORS = ("default", "raised")
_RAISED = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


def environment(allocator: str, current: Mapping[str, str]) -> dict[str, str]:
    """Makes the environment of a process that runs under one of the settings.

    Args:
        allocator: "default" or "raised".
        current: The environment to change.

    Returns:
        A copy in which the thresholds are raised, or none of the allocator's variables is set.

    Example:
        >>> environment("default", {"MALLOC_TOP_PAD_": "1", "HOME": "/"})
        {'HOME': '/'}
    """
    kept = {
        name: value for name, value in current.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    return {**kept, **_RAISED} if allocator == "raised" else kept


def give_back() -> None:
    """Gives the system the memory of what is freed already, glibc's and dwsep's.

    Between two cases: with the thresholds raised, a process that measures network after network otherwise keeps the
    largest of each kind, and grew to 13 GB over seven of them.

    Example:
        >>> give_back()
    """
    import dwsep

    gc.collect()
    dwsep.release_memory()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
