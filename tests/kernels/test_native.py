"""The native kernels against the float64 reference: bit for bit on integers, within the rounding bound on floats."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dwsep
from dwsep.kernels import reference
from tests import isas, problems

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
ops = torch.ops.dwsep
PLAIN = ("none", "none", "none")


DTYPES = (torch.float32, torch.bfloat16)


def _check_exact(
    problem: problems.Problem, generator: torch.Generator, channels_last: bool, dtype: torch.dtype = torch.float32
) -> None:
    draw = problems.small_integers(generator, dtype)
    x, depthwise, pointwise, bias, pointwise_bias = problem.tensors(draw, channels_last)
    tensors = (x, depthwise, pointwise, bias, pointwise_bias)
    out = ops.separable_conv(*tensors, *problem.geometry, "relu", "relu6", "none")
    expected = problems.in_float64(reference.separable_conv, tensors, *problem.geometry, "relu", "relu6", "none")
    assert problems.exact(out, expected), f"separable: {dtype}, {channels_last=}, {problem}"
    out = ops.separable_conv(*tensors, *problem.geometry, *PLAIN)
    expected = problems.in_float64(reference.separable_conv, tensors, *problem.geometry, *PLAIN)
    assert problems.exact(out, expected), f"separable, bare: {dtype}, {channels_last=}, {problem}"
    out = ops.depthwise_conv(x, depthwise, bias, *problem.geometry, "none")
    expected = problems.in_float64(reference.depthwise_conv, (x, depthwise, bias), *problem.geometry, "none")
    assert problems.exact(out, expected), f"depthwise: {dtype}, {channels_last=}, {problem}"


def check_recorded_exact(chosen: list[problems.Problem]) -> None:
    """Every problem in both types, and in both layouts by turns, on the instruction set in use."""
    generator = torch.Generator().manual_seed(1)
    for index, problem in enumerate(chosen):
        for dtype in DTYPES:
            _check_exact(problem, generator, index % 3 != 0, dtype)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_recorded_shapes_exact_on_integers(isa):
    script = "from tests import problems; from tests.kernels import test_native as t; "
    isas.run_on(isa, script + "t.check_recorded_exact(problems.sample(500, seed=7))")


def check_large_exact() -> None:
    """Outputs that are stored past the caches, in groups of columns that overlap at the end of a row."""
    generator = torch.Generator().manual_seed(3)
    draw = problems.small_integers(generator, torch.float32)
    for size, stride, dilation in ((3, 1, 1), (5, 1, 1), (3, 2, 1), (3, 1, 2)):
        padding = dilation * (size - 1) // 2
        problem = problems.Problem(
            f"large {size} {stride} {dilation}", 1, 48, 1, 16 if stride == 1 else 96, (300 * stride, 301 * stride),
            (size, size), (stride, stride), (dilation, dilation), (padding,) * 4,
        )  # fmt: skip
        x, depthwise, pointwise, bias, pointwise_bias = problem.tensors(draw, True)
        out = ops.depthwise_conv(x, depthwise, bias, *problem.geometry, "none")
        expected = problems.in_float64(reference.depthwise_conv, (x, depthwise, bias), *problem.geometry, "none")
        assert problems.exact(out, expected), problem
        tensors = (x, depthwise, pointwise, bias, pointwise_bias)
        out = ops.separable_conv(*tensors, *problem.geometry, *PLAIN)
        expected = problems.in_float64(reference.separable_conv, tensors, *problem.geometry, *PLAIN)
        assert problems.exact(out, expected), problem


@pytest.mark.parametrize("isa", isas.USUAL)
def test_large_outputs_exact_on_integers(isa):
    isas.run_on(isa, "from tests.kernels import test_native as t; t.check_large_exact()")


@pytest.mark.sweep
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_all_recorded_shapes_exact_on_integers(isa):
    script = "from tests import problems; from tests.kernels import test_native as t; "
    isas.run_on(isa, script + "t.check_recorded_exact(list(problems.recorded()))")


def test_recorded_shapes_within_the_bound_on_floats():
    generator = torch.Generator().manual_seed(2)
    for problem in problems.sample(500, seed=11):
        tensors = problem.tensors(problems.normal(generator), channels_last=True)
        out = ops.separable_conv(*tensors, *problem.geometry, *PLAIN).double()
        expected = problems.in_float64(reference.separable_conv, tensors, *problem.geometry, *PLAIN)
        magnitudes = tuple(tensor.abs() for tensor in tensors)
        scale = problems.in_float64(reference.separable_conv, magnitudes, *problem.geometry, *PLAIN)
        taps = tensors[1][0].numel()
        bound = (taps + tensors[1].shape[0] + 2) * 2**-24 * scale
        assert ((out - expected).abs() <= bound).all(), problem


@st.composite
def geometries(draw, sizes=(12,), channels=range(1, 36), outputs=range(1, 41), widest=6):
    """A problem with anything a convolution allows, whether it is channels last, and a seed for its tensors."""
    per_axis, top = [], draw(st.sampled_from(sizes))
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4))
        size = draw(st.integers(1, top))
        low, high = draw(st.integers(-3, widest)), draw(st.integers(-3, widest))
        low = max(low, -(size - 1))
        high = max(high, -(size - 1 + min(low, 0)))
        missing = dilation * (kernel - 1) + 1 - (size + low + high)
        high += max(0, missing)
        per_axis.append((size, kernel, draw(st.integers(1, 4)), dilation, low, high))
    spatial, kernels, strides, dilations = (tuple(axis[i] for axis in per_axis) for i in range(4))
    padding = tuple(side for axis in per_axis for side in axis[4:])
    batch, multiplier = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    counts = batch, draw(st.sampled_from(channels)), multiplier, draw(st.sampled_from(outputs))
    problem = problems.Problem("drawn", *counts, spatial, kernels, strides, dilations, padding)
    return problem, draw(st.booleans()), draw(st.integers(0, 2**31))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(geometries())
def test_drawn_geometries_exact_on_integers(drawn):
    problem, channels_last, seed = drawn
    _check_exact(problem, torch.Generator().manual_seed(seed), channels_last, DTYPES[seed % 2])


@pytest.mark.parametrize("residual", ["depthwise", "input"])
@pytest.mark.parametrize("channels", [5, 16, 24, 40])
def test_residual_exact_on_integers(residual, channels):
    generator = torch.Generator().manual_seed(3)
    problem = problems.Problem("", 2, channels, 1, channels, (9, 7), (3, 3), (1, 1), (2, 1), (2, 2, 1, 1))
    tensors = problem.tensors(problems.small_integers(generator), channels_last=True)
    arguments = (*problem.geometry, "relu", "relu6", residual)
    expected = reference.separable_conv(*problems.double(tensors), *arguments)
    assert torch.equal(ops.separable_conv(*tensors, *arguments).double(), expected)


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish", "gelu"])
def test_activation_matches_float64(activation):
    x = torch.cat([torch.linspace(-20, 20, 9999), torch.tensor([float("inf")])]).view(1, 1, 100, 100)
    one = torch.ones(1, 1, 1, 1)
    out = ops.depthwise_conv(x, one, None, [1, 1], [0] * 4, [1, 1], activation)
    expected = reference.FORWARD[activation](x.double())
    torch.testing.assert_close(out.double(), expected, rtol=4e-7, atol=1e-6)


def check_far_out(activation: str) -> None:
    """An activation and its gradient where e^x is none of float32's numbers, and at the borders of their pieces."""
    infinity, largest = float("inf"), torch.finfo(torch.float32).max / 16
    points = [infinity, largest, 1e30, 200.0, 100.0, 88.5, 87.0, 14.0, 13.0, 6.0, 3.0, 0.0]
    x = torch.tensor([point * sign for point in points for sign in (1, -1)]).view(1, 1, 1, -1)
    one, rest = torch.ones(1, 1, 1, 1), ([1, 1], [0] * 4, [1, 1], activation)
    expected = reference.FORWARD[activation](x.double())
    out = ops.depthwise_conv(x, one, None, *rest)
    torch.testing.assert_close(out.double(), expected, rtol=4e-7, atol=1e-6, equal_nan=True)
    grad = ops.depthwise_conv_backward(torch.ones_like(x), x, one, None, *rest, [True, False, False])[0]
    expected = reference.BACKWARD[activation](torch.ones_like(x).double(), x.double())
    torch.testing.assert_close(grad.double(), expected, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_activations_far_out_are_torchs(isa):
    script = "from tests.kernels import test_native as t\n"
    names = ("relu", "relu6", "silu", "hardswish", "gelu")
    isas.run_on(isa, script + "\n".join(f"t.check_far_out({name!r})" for name in names))


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "gelu"])
@pytest.mark.parametrize("channels", [3, 32])
def test_nan_passes_through(activation, channels):
    x = torch.randn(1, channels, 6, 6).to(memory_format=torch.channels_last)
    x[0, 1, 2, 2] = float("nan")
    depthwise, pointwise = torch.ones(channels, 1, 1, 1), torch.ones(20, channels, 1, 1)
    out = ops.separable_conv(x, depthwise, pointwise, None, None, [1, 1], [0] * 4, [1, 1], activation, "none", "none")
    nan = torch.zeros(6, 6, dtype=torch.bool)
    nan[2, 2] = True
    assert torch.equal(out[0].isnan(), nan.expand(20, 6, 6))


@pytest.mark.parametrize("where", ["x", "weight"])
def test_infinities_change_nothing_else(where):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 40, 20, 20, generator=generator).to(memory_format=torch.channels_last)
    depthwise = torch.randn(40, 1, 3, 3, generator=generator)
    pointwise = torch.randn(70, 40, 1, 1, generator=generator)
    rest = (None, None, [1, 1], [1] * 4, [1, 1], "none", "none", "none")
    finite = ops.separable_conv(x, depthwise, pointwise, *rest)
    if where == "x":
        x[0, 3, 4, 4], x[1, 2, 15, 5] = float("inf"), float("nan")
    else:
        pointwise[5, 7] = float("inf")
    expected = reference.separable_conv(x, depthwise, pointwise, *rest)
    out = ops.separable_conv(x, depthwise, pointwise, *rest)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert out.isinf().any()
    if where == "x":
        # Not by a bit, whatever pixels share a tile with the infinity, which the threads decide.
        untouched = out.isfinite()
        assert torch.equal(out[untouched], finite[untouched])


def test_bfloat16_accumulates_in_float32_and_rounds_once():
    generator = torch.Generator().manual_seed(4)
    for channels_last, channels in ((True, 24), (False, 19)):
        problem = problems.Problem("", 2, channels, 1, 21, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
        tensors = tuple(t.bfloat16() for t in problem.tensors(problems.normal(generator), channels_last))
        arguments = (*problem.geometry, "none", "none", "none")
        out = ops.separable_conv(*tensors, *arguments)
        exact = reference.separable_conv(*problems.double(tensors), *arguments)
        assert out.dtype == torch.bfloat16
        # One rounding of a sum which float32 has within a few of its own units; where the CPU multiplies bfloat16,
        # the depthwise output is rounded as well, as it is between two layers.
        bound = 2.0**-8 * exact.abs() * 1.01 + 1e-5
        if dwsep.ops.native_status().isa in isas.BFLOAT16:
            x, depthwise, pointwise, depthwise_bias, _ = problems.double(tensors)
            inner = reference.depthwise_conv(x, depthwise, depthwise_bias, *problem.geometry, "none")
            bound += 2.0**-9 * torch.einsum("nc...,kc->nk...", inner.abs(), pointwise.flatten(1).abs()) * 1.01
        assert ((out.double() - exact).abs() <= bound).all()
        integers = tuple(t.bfloat16() for t in problem.tensors(problems.small_integers(generator), channels_last))
        exact = reference.separable_conv(*problems.double(integers), *arguments)
        assert torch.equal(ops.separable_conv(*integers, *arguments), exact.float().bfloat16())


def test_forced_isa_which_the_cpu_lacks_is_refused():
    status = dwsep.ops.native_status()
    missing = next((isa for isa in status.compiled_isas if isa not in status.supported_isas), "avx9000")
    result = subprocess.run(
        [sys.executable, "-c", "import dwsep"],
        env={**os.environ, "DWSEP_ISA": missing},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"RuntimeError: DWSEP_ISA={missing!r}" in result.stderr
    assert f"supported here: {', '.join(status.supported_isas)}" in result.stderr


def _refused(*arguments):
    try:
        ops.separable_conv(*arguments)
    except RuntimeError as error:
        return str(error)
    return None


def test_operator_called_directly_refuses_what_it_cannot_run():
    x, depthwise, pointwise = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.ones(6, 4, 1, 1)
    good = [x, depthwise, pointwise, None, None, [1, 1], [1] * 4, [1, 1], "none", "none", "none"]
    assert _refused(*good) is None
    for position, value, words in (
        (0, torch.ones(1, 4, 5, 5, dtype=torch.float64), "float32"),
        (0, torch.ones(4, 5), "3 to 5 dimensions"),
        (1, torch.ones(3, 1, 3, 3), "multiple of x's 4 channels"),
        (1, torch.ones(4, 2, 3, 3), "shape"),
        (2, torch.ones(6, 5, 1, 1), "shape (K, 4"),
        (3, torch.ones(5), "shape (4)"),
        (5, [0, 1], "between 1"),
        (5, [1], "entries"),
        (6, [2**40, 0, 0, 0], "padding must be"),
        (6, [-5, 0, 0, 0], "crops"),
        (6, [0, -3, 0, 0], "output size"),
        (7, [1, 2**33], "between 1"),
        (8, "tanh", "unknown activation"),
        (10, "sum", "unknown residual"),
        (10, "depthwise", "channels"),
        (10, "input", "same shape"),
    ):
        arguments = list(good)
        arguments[position] = value
        message = _refused(*arguments)
        assert message is not None, words
        assert words in message
