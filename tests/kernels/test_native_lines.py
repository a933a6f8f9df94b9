"""Short convolutions of contiguous tensors with one axis, which are computed line by line."""

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
    """Lengths about whole vectors, windows from one element to more than the line, paddings of any sign."""
    kernel, dilation = rng.choice((1, 2, 3, 4, 5, 9, 16, 17)), rng.choice((1, 1, 2, 7))
    length = rng.choice((1, 2, 7, 15, 16, 17, 33, 128, 130, 300))
    low, high = rng.randint(-2, 40), rng.randint(-2, 40)
    low = max(low, 1 - length)
    high = max(high, 1 - length - min(low, 0), dilation * (kernel - 1) + 1 - length - low)
    counts = rng.randint(0, 3), rng.choice((1, 3, 16, 21)), rng.choice((1, 1, 2, 3)), 1
    return problems.Problem("drawn", *counts, (length,), (kernel,), (1,), (dilation,), (low, high))


def check_lines(seed: int, count: int) -> None:
    """Exact on integers in both types, also where lines are not one behind the other."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for index in range(count):
        problem, dtype = drawn(rng), (torch.float32, torch.bfloat16)[index % 2]
        x, weight, _, bias, _ = problem.tensors(problems.small_integers(generator, dtype), channels_last=False)
        if rng.random() < 0.3:
            wide = torch.full((*x.shape[:2], x.shape[2] + 3), float("nan"), dtype=dtype)
            wide[..., 2:-1] = x
            x = wide[..., 2:-1]
        bias = bias if rng.random() < 0.5 else None
        out = torch.ops.dwsep.depthwise_conv(x, weight, bias, *problem.geometry, "relu")
        tensors = (x, weight) if bias is None else (x, weight, bias)
        double = (*problems.double(tensors), None)[:3]
        expected = reference.depthwise_conv(*double, *problem.geometry, "relu")
        assert problems.exact(out, expected), (problem, dtype)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_lines_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_lines as t; t.check_lines(0, 300)")


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lines_have_the_bits_of_channels_last(activation, dtype):
    generator = torch.Generator().manual_seed(3)
    for length, kernel, dilation in ((1, 4, 1), (37, 4, 1), (300, 3, 5), (129, 16, 2)):
        x = torch.randn(2, 19, length, generator=generator).to(dtype)
        weight, bias = torch.randn(19, 1, kernel, generator=generator).to(dtype), torch.randn(19).to(dtype)
        arguments = weight, bias, [1], [dilation * (kernel - 1), 0], [dilation], activation
        last = torch.ops.dwsep.depthwise_conv(x.mT.contiguous().mT, *arguments)
        assert torch.equal(torch.ops.dwsep.depthwise_conv(x, *arguments), last)


def test_lines_of_a_large_output_are_stored_past_the_caches_whole():
    x = torch.arange(768 * 2048, dtype=torch.float32).remainder(7).view(1, 768, 2048)
    weight = torch.tensor([1.0, -2.0, 3.0, 1.0]).expand(768, 1, 4)
    for columns in (2048, 2047, 2032):  # whole cache lines, and not
        out = torch.ops.dwsep.depthwise_conv(x[..., :columns], weight, None, [1], [3, 0], [1], "none")
        assert torch.equal(out, reference.depthwise_conv(x[..., :columns], weight, None, [1], [3, 0], [1], "none"))


def test_an_infinity_is_in_its_own_windows_alone():
    x = torch.randn(1, 3, 100)
    arguments = torch.randn(3, 1, 4), None, [1], [3, 0], [1], "silu"
    finite = torch.ops.dwsep.depthwise_conv(x, *arguments)
    x[0, 1, 50] = float("inf")
    out = torch.ops.dwsep.depthwise_conv(x, *arguments)
    changed = torch.zeros(1, 3, 100, dtype=torch.bool)
    changed[0, 1, 50:54] = True
    assert torch.equal(out[~changed], finite[~changed])
    assert not torch.equal(out[changed], finite[changed])
