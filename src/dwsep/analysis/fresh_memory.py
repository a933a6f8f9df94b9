"""What fresh memory costs with the allocator in use, as training asks for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from dwsep.analysis._page_faults import count_page_faults

# Activations of a MobileNetV2 at a small batch, in MiB. They are alive together, and some are larger than the 32 MiB up
# to which glibc adapts by itself: one block alone, freed and allocated again, would hide the problem.
_SIZES = (12, 25, 38, 51)
_SETTLING_ROUNDS = 8  # an allocator that keeps memory needs a few before every block finds its place


@dataclass(frozen=True)
class FreshMemory:
    """Cost of writing to each MiB of memory, in blocks allocated anew or in blocks that are kept.

    Attributes:
        fresh: Seconds per MiB in blocks that are allocated for it and freed afterwards.
        kept: Seconds per MiB in blocks that stay allocated.
        faults: Page faults per MiB in the first case.
    """

    fresh: float
    kept: float
    faults: float

    @property
    def overhead(self) -> float:
        """What the fresh blocks cost beyond the kept ones, as a fraction of the latter."""
        return self.fresh / self.kept - 1


def measure_fresh_memory(
    *,
    rounds: int = 7,
    timer: Callable[[], float] = time.perf_counter,
    faults: Callable[[], int] = lambda: count_page_faults() or 0,
) -> FreshMemory:
    """Measures what fresh memory costs in this process; it takes half a second and 250 MiB.

    Args:
        rounds: Turns that are measured.
        timer: Clock in seconds.
        faults: Counter of the process's page faults.

    Returns:
        Medians over the rounds.
    """
    import torch

    total = sum(_SIZES)
    kept = [torch.empty(size << 18) for size in _SIZES]

    def write_fresh() -> None:
        blocks = [torch.empty(size << 18).fill_(1.0) for size in _SIZES]
        del blocks

    def write_kept() -> None:
        for block in kept:
            block.fill_(1.0)

    def turn(write: Callable[[], None]) -> tuple[float, int]:
        faults_before, started = faults(), timer()
        write()
        return timer() - started, faults() - faults_before

    for _ in range(_SETTLING_ROUNDS):
        write_fresh()
        write_kept()
    # By turns, so that a machine which is busy for a while slows both.
    turns = [(turn(write_fresh), turn(write_kept)) for _ in range(rounds)]
    return FreshMemory(
        fresh=statistics.median(seconds for (seconds, _), _ in turns) / total,
        kept=statistics.median(seconds for _, (seconds, _) in turns) / total,
        faults=statistics.median(count for (_, count), _ in turns) / total,
    )
