import itertools

import pytest

from dwsep.analysis.fresh_memory import FreshMemory, measure_fresh_memory


def test_measure_fresh_memory_sees_every_block_written():
    measured = measure_fresh_memory(rounds=1)
    assert measured.fresh > 0
    assert measured.kept > 0
    assert measured.faults >= 0


def test_measure_fresh_memory_takes_medians_per_mebibyte():
    # Each turn reads the clock and the counter twice: fresh ones take 126 seconds, then 252, kept ones 63, always.
    seconds = itertools.chain([0, 126, 0, 63], [0, 126, 0, 63], [0, 252, 0, 63])
    faults = itertools.chain([0, 1260, 0, 0], [5, 1265, 7, 7], [0, 9999, 0, 0])
    measured = measure_fresh_memory(rounds=3, timer=lambda: next(seconds), faults=lambda: next(faults))
    assert measured == FreshMemory(fresh=1.0, kept=0.5, faults=10.0)
    assert measured.overhead == pytest.approx(1.0)
