"""Products with a gate that are never made: pointwise convolutions of a training program multiply while loading."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import dwsep
from dwsep.accelerate import _segments
from dwsep.ops import training_program
from dwsep.ops.training_program import ACTIVATIONS, COLUMNS, Kind, Statistics, needed
from tests.accelerate.toys import check_step, randomise
from tests.ops.test_training_program import _row
from tests.problems import last

ops = torch.ops.dwsep
pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


def _program(
    statistics: Statistics, activation: str, takers: int, pooled: int
) -> tuple[list[int], list[int], list[float]]:
    """A norm of the input, its product with a gate, and pointwise convolutions of that."""
    rows = [
        _row(Kind.NORM, 0, 2, norm=0, norm_weight=0, norm_bias=1),
        _row(Kind.POOL, 2, 3, option=1),
        _row(Kind.CONV, 3, 4, weight=2, bias=3),
        _row(Kind.GATE, 4, 5, option=0),
        _row(Kind.GATED, 2, 6, operand=5, option=2 + pooled),
    ]
    for taker in range(takers):
        rows.append(_row(Kind.CONV, 6, 7 + taker, weight=4 + taker, norm=1 + taker))
    names = ["none", "none", activation, *["none"] * (4 + takers)]
    norms = [float(statistics), 1e-5, 0.1] * (1 + takers)
    return [n for row in rows for n in row], [ACTIVATIONS.index(name) for name in names], norms


@pytest.mark.parametrize("statistics", list(Statistics))
@pytest.mark.parametrize(
    ("shape", "outputs", "activation", "takers", "pooled"),
    [
        ((2, 20, 5, 7), 6, "silu", 1, 1),
        ((9, 33, 3, 3), 6, "hardswish", 2, 1),
        ((1, 16, 2, 3), 6, "relu", 1, 0),
        ((40, 40, 2, 1), 6, "silu", 1, 1),
        ((3, 48, 31, 29), 6, "silu", 1, 1),
        ((3, 560, 4, 5), 500, "silu", 1, 1),  # the gradient of so large a weight is made of all pixels at once
    ],
)
def test_equals_the_reference(shape, outputs, activation, takers, pooled, statistics):
    torch.manual_seed(0)
    channels = shape[1]
    table, activations, norms = _program(statistics, activation, takers, pooled)
    inputs = [last(torch.randn(shape)), torch.empty(0)]
    parameters = [torch.randn(channels), torch.randn(channels), torch.randn(channels, channels, 1, 1) / channels**0.5]
    parameters += [torch.randn(channels), *(torch.randn(outputs + i, channels, 1, 1) for i in range(takers))]
    running = [torch.zeros(channels), torch.ones(channels)]
    running += [make(outputs + i) for i in range(takers) for make in (torch.zeros, torch.ones)]
    own = [tensor.clone() for tensor in running]
    made = ops.training_program(inputs, parameters, running, table, activations, norms)
    expected = training_program._forward(inputs, parameters, own, table, activations, norms)
    for one, other in zip([*made, *running], [*expected, *own], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert sum(tensor.numel() == 0 for tensor in made) == 1
    kept = [tensor if need else torch.empty(0)
            for tensor, need in zip(made, needed(table, activations, norms, 2)[1], strict=True)]  # fmt: skip
    values = [7 + taker for taker in range(takers)]
    rng = random.Random(0)
    for trial in range(6):
        wants = [wanted if trial == 0 else rng.random() < 0.6 for wanted in [True, False, *[True] * len(parameters)]]
        wants[1] = False
        grads = [torch.randn(shape[0], outputs + i, *shape[2:]) for i in range(takers)]
        rest = (grads, inputs, parameters, kept, table, activations, norms, values, wants)
        found = ops.training_program_backward(*rest)
        for one, other in zip(found, training_program._backward(*rest), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_threads_change_nothing():
    torch.manual_seed(0)
    table, activations, norms = _program(Statistics.BATCH, "silu", 1, 1)
    x = last(torch.randn(5, 24, 19, 17))
    parameters = [
        torch.randn(24),
        torch.randn(24),
        torch.randn(24, 24, 1, 1),
        torch.randn(24),
        torch.randn(6, 24, 1, 1),
    ]
    running = [torch.zeros(24), torch.ones(24), torch.zeros(6), torch.ones(6)]

    def run() -> list[Tensor]:
        made = ops.training_program([x, torch.empty(0)], parameters, running, table, activations, norms)
        grad = torch.cos(made[-5])
        wants = [True, False, *[True] * 5]
        rest = (parameters, made, table, activations, norms, [7], wants)
        return [*made, *ops.training_program_backward([grad], [x, torch.empty(0)], *rest)]

    before = torch.get_num_threads()
    expected = run()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(one, other) for one, other in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "row",
    [
        _row(Kind.OUTPUT, 6, 7),
        _row(Kind.POOL, 6, 7),
        _row(Kind.NORM, 6, 7),
        _row(Kind.CONV, 6, 7, weight=4, depthwise=1),
        _row(Kind.CONV, 6, 7, weight=4, depthwise=2),
        _row(Kind.OUTPUT, 0, 7, operand=6),
    ],
)
def test_nothing_else_takes_one(row):
    table, activations, norms = _program(Statistics.BATCH, "silu", 1, 1)
    table = table[: -len(COLUMNS)] + list(row)
    parameters = [torch.randn(8), torch.randn(8), torch.randn(8, 8, 1, 1), torch.randn(8), torch.randn(8, 8, 1, 1)]
    running = [torch.zeros(8), torch.ones(8)] * 2
    with pytest.raises(RuntimeError, match="only a pointwise convolution takes a product"):
        ops.training_program(
            [last(torch.randn(2, 8, 4, 4)), torch.empty(0)], parameters, running, table, activations, norms
        )


class _Block(nn.Module):
    """A gated value that a pointwise convolution takes, or that others take, too."""

    def __init__(self, takes: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.after = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.takes = takes

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.conv(x)))
        gate = torch.sigmoid(self.expand(nn.functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = x * gate
        y = self.after(self.project(x))
        if self.takes == "twice":
            y = y + self.project(x)
        return y + x[:, :8] if self.takes == "another" else y


@pytest.mark.parametrize(("takes", "loaded"), [("once", 1), ("twice", 1), ("another", 0)])
def test_where_it_is_used(takes, loaded, monkeypatch):
    torch.manual_seed(0)
    seen: list[int] = []
    plain = _segments.Lowered.run

    def run(self, inputs, rounds):
        kinds, options = self.steps[:: len(COLUMNS)], self.steps[len(COLUMNS) - 1 :: len(COLUMNS)]
        seen.append(sum(kind == Kind.GATED and option >= 2 for kind, option in zip(kinds, options, strict=True)))
        return plain(self, inputs, rounds)

    monkeypatch.setattr(_segments.Lowered, "run", run)
    net = randomise(_Block(takes))
    dwsep.accelerate_(net)
    check_step(net, torch.randn(4, 16, 9, 10))
    assert max(seen) == loaded
