"""Floats, forward and gradients: no element further from float64 than its own roundings allow, on drawn problems.

A float32 sum of n products is within gamma(n) = n u / (1 - n u), u = 2^-24, of sum |x w| in whatever order: a product
is rounded once and goes through at most n - 1 additions (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
A bias is one more addition. Where the terms are sums themselves, the counts add up. Each result has the count of its
own elements, and elements differ in magnitude by powers of two, so that a term which is lost, or rounded to less than
float32, is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import dwsep
from dwsep.kernels import reference
from tests import isas, problems
from tests.kernels.test_native import geometries

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
ISA = dwsep.ops.native_status().isa
# float32 products by bfloat16 tiles leave out up to 2^-21 of a product, which is 8 u: docs/design/amx.md.
TILES = 8 if ISA == "amx_fp32" else 0
CASES = 2000


def _draw(generator: torch.Generator) -> Callable[[Sequence[int]], Tensor]:
    """Normal numbers times powers of two from 2^-6 to 2^6."""

    def draw(shape):
        return torch.randn(shape, generator=generator).ldexp(torch.randint(-6, 7, shape, generator=generator))

    return draw


def _check(results: dict[str, Tensor], expected: Sequence[Tensor], scales: Sequence[Tensor], terms: Sequence[int]):
    """Every result against float64, with the sums of magnitudes and the roundings behind an element."""
    for (name, result), wanted, scale, count in zip(results.items(), expected, scales, terms, strict=True):
        gamma = count * 2.0**-24 / (1 - count * 2.0**-24)
        # A NaN is no number's neighbour: written so that it fails.
        assert ((result.double() - wanted).abs() <= gamma * scale).all(), f"{name}, {count} terms"


def check_bound(problem: problems.Problem, channels_last: bool, seed: int) -> None:
    """Both operators and all their gradients on one problem.

    On one thread, which is much faster for problems as small as these: test_repeatability.py says that it is enough.
    """
    with problems.threads(1):
        _check_operators(problem, channels_last, seed)


def _check_operators(problem: problems.Problem, channels_last: bool, seed: int) -> None:
    draw = _draw(torch.Generator().manual_seed(seed))
    residual = ("none", "none", "depthwise")[seed % 3]
    if residual == "depthwise":
        problem = replace(problem, out_channels=problem.channels * problem.multiplier)
    inner, taps, outputs = problem.channels * problem.multiplier, math.prod(problem.kernel), problem.out_channels
    pixels = problem.batch * math.prod(problem.output)
    activation = ("none", "relu")[seed // 3 % 2]  # takes no rounding and stretches no distance
    added = int(residual != "none")

    tensors = x, depthwise, _, bias, _ = problem.tensors(draw, channels_last)
    grad_inner = draw((problem.batch, inner, *problem.output))
    grad = draw((problem.batch, outputs, *problem.output))
    if channels_last:
        grad_inner, grad = (g.movedim(1, -1).contiguous().movedim(-1, 1) for g in (grad_inner, grad))
    geometry = problem.geometry

    def both(call: Callable[..., Tensor | tuple[Tensor, ...]], *arguments: Tensor, options: tuple):
        """What ``call`` gives in float64, and the sums of magnitudes behind it."""
        doubles = problems.double(arguments)
        found = call(*doubles, *options), call(*(tensor.abs() for tensor in doubles), *options)
        return [(f,) if isinstance(f, Tensor) else f for f in found]

    forward = (*geometry, activation)
    out = {"depthwise": ops.depthwise_conv(x, depthwise, bias, *forward)}
    _check(out, *both(reference.depthwise_conv, x, depthwise, bias, options=forward), [taps + 1])
    forward = (*geometry, activation, "none", residual)
    out = {"separable": ops.separable_conv(*tensors, *forward)}
    through = taps + 1 + inner + 1 + added + TILES
    _check(out, *both(reference.separable_conv, *tensors, options=forward), [through])

    backward = (*geometry, "none", [True] * 3)
    found = ops.depthwise_conv_backward(grad_inner, x, depthwise, bias, *backward)
    wanted = both(reference.depthwise_conv_backward, grad_inner, x, depthwise, bias, options=backward)
    below = taps * problem.multiplier
    names = ("gradient of x", "of the weight", "of the bias")
    _check(dict(zip(names, found, strict=True)), *wanted, [below, pixels, pixels])
    backward = (*geometry, "none", "none", residual, [True] * 5)
    found = ops.separable_conv_backward(grad, *tensors, *backward)
    wanted = both(reference.separable_conv_backward, grad, *tensors, options=backward)
    between = outputs + added  # the depthwise output's gradient
    counts = [between + below, between + pixels, taps + 1 + pixels, between + pixels, pixels]
    names = (
        "gradient of x",
        "of the depthwise weight",
        "of the pointwise weight",
        "of the depthwise bias",
        "of the bias",
    )
    _check(dict(zip(names, found, strict=True)), *wanted, counts)


# Few terms make a bound that is easily broken, and small problems let many be drawn.
small = geometries((1, 2, 3, 5, 8), (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33), range(1, 21), widest=2)


@settings(max_examples=CASES, deadline=None, derandomize=True)
@given(small)
def test_drawn_problems_within_the_bound(drawn):
    check_bound(*drawn)


@settings(max_examples=CASES // 4, deadline=None, derandomize=True)
@given(small)
def check_some(drawn):
    """Fewer of the same problems, for instruction sets that are not the one in use."""
    check_bound(*drawn)


@pytest.mark.parametrize("isa", [isa for isa in isas.SUPPORTED if isa != ISA])
def test_drawn_problems_within_the_bound_on(isa):
    isas.run_on(isa, "from tests.kernels import test_float_bounds as t; t.check_some()")


@pytest.mark.parametrize("factor", [1 + 2.0**-20, 1 - 2.0**-20])
def test_the_bound_refuses_a_result_that_is_slightly_off(factor, monkeypatch):
    """A result rounded to 20 bits is not float32's: the check must say so."""
    problem = problems.Problem("", 2, 5, 1, 3, (4, 5), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    check_bound(problem, True, 0)
    exact = reference.depthwise_conv
    monkeypatch.setattr(reference, "depthwise_conv", lambda *arguments: exact(*arguments) * factor)
    with pytest.raises(AssertionError, match="depthwise, 10 terms"):
        check_bound(problem, True, 0)
