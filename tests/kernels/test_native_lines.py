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


def drawn_back(rng: random.Random) -> problems.Problem:
    """Such as the way back takes by lines: some beyond what is summed at once, windows up to the whole line."""
    kernel, dilation = rng.randint(1, 8), rng.choice((1, 1, 2, 40))
    length = rng.choice((256, 257, 300, 4095, 4096, 4130))
    low, high = rng.randint(-5, 80), rng.randint(-5, 80)
    high = max(high, 256 - length - low + dilation * (kernel - 1))
    counts = rng.randint(0, 3), rng.choice((16, 21)), 1, 1
    return problems.Problem("drawn", *counts, (length,), (kernel,), (1,), (dilation,), (low, high))


def check_lines_backward(seed: int, count: int) -> None:
    """Every gradient exact on integers, whichever of them are wanted."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(count):
        problem, draw = drawn_back(rng), problems.small_integers(generator)
        x, weight, _, bias, _ = problem.tensors(draw, channels_last=False)
        grad = draw((problem.batch, problem.channels, *problem.output))
        if rng.random() < 0.3:
            wide = torch.full((*x.shape[:2], x.shape[2] + 3), float("nan"))
            wide[..., 2:-1] = x
            x = wide[..., 2:-1]
        bias = bias if rng.random() < 0.5 else None
        mask = [rng.random() < 0.8, rng.random() < 0.8, bias is not None and rng.random() < 0.8]
        rest = (*problem.geometry, rng.choice(("none", "relu")), mask)
        gradients = torch.ops.dwsep.depthwise_conv_backward(grad, x, weight, bias, *rest)
        double = [None if tensor is None else tensor.double() for tensor in (grad, x, weight, bias)]
        expected = reference.depthwise_conv_backward(*double, *rest)
        for gradient, wanted, value in zip(gradients, expected, mask, strict=True):
            assert (wanted is not None) == value
            assert gradient.numel() == 0 if wanted is None else problems.exact(gradient, wanted), (problem, rest)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_lines_backward_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native_lines as t; t.check_lines_backward(0, 100)")


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "gelu"])
def test_lines_backward_matches_float64(activation):
    generator = torch.Generator().manual_seed(4)
    draw = problems.normal(generator)
    for length, kernel, dilation, pad in ((256, 4, 1, [3, 0]), (4500, 3, 5, [4, 11]), (300, 8, 2, [-2, 20])):
        x, weight, bias = draw((2, 19, length)), draw((19, 1, kernel)), draw((19,))
        rest = [1], pad, [dilation], activation
        grad = draw(tuple(torch.ops.dwsep.depthwise_conv(x, weight, bias, *rest).shape))
        if activation in ("relu", "relu6", "hardswish"):
            # Where rounding decides on the side of a kink, nothing comes from above.
            before = reference.depthwise_conv(x.double(), weight.double(), bias.double(), *rest[:3], "none")
            kinks = {"relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}[activation]
            for kink in kinks:
                grad[(before - kink).abs() < 1e-4] = 0
        mask = [True] * 3
        gradients = torch.ops.dwsep.depthwise_conv_backward(grad, x, weight, bias, *rest, mask)
        expected = reference.depthwise_conv_backward(
            *(tensor.double() for tensor in (grad, x, weight, bias)), *rest, mask
        )
        for gradient, wanted in zip(gradients, expected, strict=True):
            scale = float(wanted.square().mean().sqrt())
            torch.testing.assert_close(gradient.double(), wanted, rtol=2e-6, atol=4e-6 * scale)


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
    x = torch.arange(3 * 768 * 2048, dtype=torch.float32).remainder(7).view(3, 768, 2048)
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
