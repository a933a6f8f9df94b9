"""Formulas against numbers worked out by hand."""

import pytest

from dwsep.bench import costs
from dwsep.bench.registry import Case, Task
from tests.bench.toys import CEILINGS

# 10 x 12 -> 5 x 6 at batch 2: 240 input and 60 output pixels, 9 taps.
SEPARABLE = Case("separable", "s", 2, 4, 8, (10, 12), (3, 3), stride=2)
DEPTHWISE = Case("depthwise", "d", 3, 5, 5, (7,), (4,))


@pytest.mark.parametrize(
    ("task", "macs"),
    [
        (Task(SEPARABLE), 60 * (4 * 9 + 4 * 8)),
        (Task(SEPARABLE, "norm"), 60 * (4 * 9 + 4 * 8)),
        # forward 36 + 32; backward recomputes 36, then 2 * 32 and 2 * 36
        (Task(SEPARABLE, training=True), 60 * (36 + 32 + 36 + 64 + 72)),
        (Task(DEPTHWISE), 21 * 5 * 4),
        (Task(DEPTHWISE, training=True), 3 * 21 * 5 * 4),
    ],
)
def test_macs(task, macs):
    assert costs.macs(task) == macs


@pytest.mark.parametrize(
    ("task", "elements"),
    [
        # x 240 * 4, y 60 * 8, weights 4 * 9 + 4 * 8
        (Task(SEPARABLE), 960 + 480 + 68),
        # and x, the gradients of y and x, the weights and their gradients
        (Task(SEPARABLE, training=True), 3 * 960 + 2 * 480 + 3 * 68),
        (Task(DEPTHWISE), 105 + 105 + 20),
        (Task(DEPTHWISE, training=True), 3 * 105 + 2 * 105 + 3 * 20),
    ],
)
def test_bytes_moved(task, elements):
    assert costs.bytes_moved(task) == 4 * elements
    assert costs.bytes_moved(Task(task.case, task.variant, task.training, "bfloat16")) == 2 * elements


def test_floor_is_the_slower_of_arithmetic_and_memory():
    wide = Task(Case("separable", "w", 1, 512, 512, (14, 14), (3, 3)))
    assert costs.floor_seconds(wide, CEILINGS) == pytest.approx(2 * 196 * 512 * (9 + 512) / 4e11)
    thin = Task(Case("depthwise", "t", 1, 64, 64, (128, 128), (3, 3)))
    moved = 4 * (2 * 64 * 128 * 128 + 64 * 9)
    assert costs.bytes_moved(thin) == moved
    assert costs.floor_seconds(thin, CEILINGS) == pytest.approx(moved / 1e11)  # 8 MiB: at the pace of the copy of 1 MiB
    larger = Task(Case("depthwise", "t", 2, 64, 64, (128, 128), (3, 3)))
    assert costs.floor_seconds(larger, CEILINGS) == pytest.approx(costs.bytes_moved(larger) / 5e10)


def test_intensity_counts_two_operations_to_a_multiply_add():
    assert costs.intensity(Task(DEPTHWISE)) == 2 * 420 / (4 * 230)
