"""Depthwise convolution of bfloat16, whose planes hold pairs of pixels where the CPU multiplies pairs."""

from __future__ import annotations

import random

import pytest
import torch

import dwsep
from dwsep.kernels import reference
from tests import isas, problems

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


def drawn(rng: random.Random) -> problems.Problem:
    """Kernels of any width, rows shorter than a tap's distance and longer than a panel, paddings on either side."""
    axes = []
    for axis in range(rng.choice((2, 2, 3))):
        kernel, dilation = (
            rng.choice((2, 3, 4, 5, 6, 7, 9, 12)) if axis else rng.randint(1, 3),
            rng.choice((1, 1, 2, 5)),
        )
        size = rng.choice((1, 2, 4, 9, 20, 33) if axis else (1, 3, 6))
        low, high = rng.randint(-1, dilation * kernel), rng.randint(-1, dilation * kernel)
        low = max(low, 1 - size)
        high = max(high, 1 - size - min(low, 0), dilation * (kernel - 1) + 1 - size - low)
        axes.append(((size,), (kernel,), (rng.choice((1, 1, 2, 3)),), (dilation,), (low, high)))
    geometry = [sum(parts, ()) for parts in zip(*axes, strict=True)]
    counts = rng.randint(1, 3), rng.choice((3, 16, 21, 32, 40, 72)), rng.choice((1, 1, 1, 2)), 1
    return problems.Problem("drawn", *counts, *geometry)


def check_half(seed: int, count: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(count):
        problem = drawn(rng)
        draw = problems.small_integers(generator, torch.bfloat16)
        x, weight, _, bias, _ = problem.tensors(draw, channels_last=True)
        bias = bias if rng.random() < 0.5 else None
        out = torch.ops.dwsep.depthwise_conv(x, weight, bias, *problem.geometry, "relu")
        double = (*problems.double((x, weight)), None if bias is None else bias.double())
        expected = reference.depthwise_conv(*double, *problem.geometry, "relu")
        assert problems.exact(out, expected), problem


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_half as t; t.check_half(0, 200)")


def check_infinities() -> None:
    """An infinite pixel reaches the outputs whose taps meet it, and no neighbour of theirs, not even as a NaN."""
    for kernel, dilation, stride in ((3, 2, 1), (4, 1, 1), (5, 1, 1), (5, 1, 2), (7, 1, 1), (9, 1, 1), (11, 3, 1)):
        x = torch.ones(2, 32, 40, 40, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        x[0, 3, 20, 17] = float("inf")
        weight = torch.ones(32, 1, kernel, kernel, dtype=torch.bfloat16)
        side = (kernel - 1) * dilation // 2
        geometry = ([stride] * 2, [side] * 4, [dilation] * 2)
        out = torch.ops.dwsep.depthwise_conv(x, weight, None, *geometry, "none")
        expected = reference.depthwise_conv(x.double(), weight.double(), None, *geometry, "none")
        assert torch.equal(out, expected.bfloat16()), (kernel, dilation, stride)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_infinities_stay_where_they_belong(isa):
    isas.run_on(isa, "from tests.kernels import test_native_half as t; t.check_infinities()")
