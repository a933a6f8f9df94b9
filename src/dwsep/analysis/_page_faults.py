"""Page faults of this process: what it pays for memory that it gave back to the system and takes anew."""

from __future__ import annotations

import mmap
import time

from dwsep.analysis.allocator import VARIABLES, allocator_name

_PAGES = 512  # of an experiment
_WORTH_A_LINE = 0.03  # of a run's time


def count_page_faults() -> int | None:
    """Page faults of this process so far that needed no disk; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on every system
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def seconds_of_page_fault() -> float:
    """Measures what the first write to a page costs beyond a second one, in a millisecond or two."""
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE) as block:
        offsets = range(0, len(block), mmap.PAGESIZE)
        begun, faults = time.perf_counter(), count_page_faults() or 0
        for offset in offsets:
            block[offset] = 1
        faulted, faults = time.perf_counter(), (count_page_faults() or 0) - faults
        for offset in offsets:
            block[offset] = 1
        written = time.perf_counter()
    # huge pages need fewer faults than there are pages
    return max((faulted - begun) - (written - faulted), 0.0) / max(faults, 1)


def describe_page_faults(faults: float, each: float, run: float) -> str | None:
    """Says what they cost, and what to do about it, where that is a part of a run's time worth knowing.

    Args:
        faults: Of a run.
        each: Seconds of one.
        run: Seconds of the run.

    Returns:
        A sentence, or None.
    """
    if faults * each < _WORTH_A_LINE * run:
        return None
    text = (
        f"a run takes {faults:,.0f} page faults, of {1e6 * each:.1f} µs each: memory that it gives back to the system "
        "and takes anew"
    )
    if allocator_name() != "glibc":
        return text
    return f"{text}; dwsep.analysis.keep_freed_memory(), or {VARIABLES} in the environment, has it kept"
