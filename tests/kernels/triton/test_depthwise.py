"""The Triton kernels against the reference: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.kernels.activations import NAMES
from dwsep.kernels.triton.shapes import Shape, shape_of
from tests.problems import Problem, double, exact, integers, last, normal, sample, small_integers

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import depthwise, launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Geometry = tuple[list[int], list[int], list[int]]


def place(tensor: Tensor, channels_last: bool) -> Tensor:
    """The tensor where the kernels run."""
    tensor = tensor.to(DEVICE)
    return last(tensor) if channels_last and tensor.dim() > 2 else tensor


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    grad: Tensor | None,
    channels_last: bool,
    activation="none",
) -> list[Tensor]:
    """Output and gradients of the kernels, back on the CPU."""
    tensors = place(x, channels_last), weight.to(DEVICE), None if bias is None else bias.to(DEVICE)
    y = depthwise.forward(*tensors, *geometry, activation, last=channels_last)
    if grad is None:
        return [y.cpu()]
    mask = [True, True, bias is not None]
    grads = depthwise.backward(place(grad, channels_last), *tensors, *geometry, activation, mask, last=channels_last)
    return [y.cpu(), *(found.cpu() for found in grads if found is not None)]


def truth(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, grad: Tensor, activation="none"
) -> list[Tensor]:
    """The same from the reference in float64."""
    tensors = [None if tensor is None else tensor.double() for tensor in (x, weight, bias)]
    y = reference.depthwise_conv(*tensors, *geometry, activation)
    mask = [True, True, bias is not None]
    grads = reference.depthwise_conv_backward(grad.double(), *tensors, *geometry, activation, mask)
    return [y, *(found for found in grads if found is not None)]


def check_exact(problem: Problem, position: int) -> None:
    """Forward and both gradients on small integers, bit for bit; types, layouts and activations in turn."""
    generator = torch.Generator().manual_seed(position)
    dtype = DTYPES[position % 3]
    draw = small_integers(generator, dtype)
    x, weight, _, bias, _ = problem.tensors(draw, channels_last=False)
    activation = ("none", "relu")[position // 2 % 2]
    grad = draw((problem.batch, weight.shape[0], *problem.output))
    found = run(x, weight, bias, problem.geometry, grad, position % 2 == 0, activation)
    expected = truth(x, weight, bias, problem.geometry, grad, activation)
    assert len(found) == len(expected)
    for name, got, want in zip(("output", "x", "weight", "bias"), found, expected):
        assert exact(got, want), f"{name}: {problem}, {dtype}"


@pytest.fixture
def forget_calls():
    """Calls are worked out anew within a test, and again after it."""
    names = "correlate_last", "correlate_planes", "weight_sums_last", "weight_sums_planes"
    original = {name: getattr(launch, name) for name in names}
    for name in names:
        setattr(launch, name, original[name].__wrapped__)
    yield
    for name in names:
        setattr(launch, name, original[name])


def programs(problem: Problem) -> int:
    """How many programs a problem's kernels are: each takes the interpreter milliseconds."""
    stride, padding, dilation = (tuple(values) for values in problem.geometry)
    channels = problem.channels
    size, weight = (problem.batch, channels, *problem.spatial), (channels * problem.multiplier, 1, *problem.kernel)
    shape, _ = shape_of(size, weight, stride, padding, dilation)
    if not all(axis.output > 0 for axis in (shape.rows, shape.cols)):
        return 0
    calls = [launch.correlate_last(shape, transposed, 4) for transposed in (False, True)]
    calls += [launch.correlate_planes(shape, transposed, 4) for transposed in (False, True)]
    calls += [launch.weight_sums_last(shape, 4)[0], launch.weight_sums_planes(shape, 4)[0]]
    return sum(math.prod(call.grid) for call in calls)


def recorded(count: int, seed: int, largest_macs: int, most_programs: int) -> list[Problem]:
    """Recorded problems over one and two axes."""
    problems = [problem for problem in sample(4 * count, seed, largest_macs) if len(problem.spatial) <= 2]
    return [problem for problem in problems if programs(problem) <= most_programs][:count]


@pytest.mark.parametrize("part", range(8))
def test_recorded_problems_are_exact(part):
    problems = recorded(24, 0, 100_000, 40)
    assert len(problems) == 24
    for position, problem in list(enumerate(problems))[part::8]:
        check_exact(problem, position)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(30))
def test_300_recorded_problems_are_exact(part):
    problems = recorded(300, 1, 300_000, 2000)
    assert len(problems) == 300
    for position, problem in list(enumerate(problems))[part::30]:
        check_exact(problem, position)


GEOMETRIES = [
    ((7, 16), (3, 3), (1, 1), [1, 1, 1, 1], (1, 1)),  # rows of whole vectors
    ((40,), (11,), (1,), [10, 0], (1,)),  # more taps than are unrolled at once, causal
    ((40,), (11,), (1,), [-3, 13], (1,)),  # the same with a crop
    ((9, 8), (3, 2), (1, 1), [3, 4, 2, 7], (1, 1)),  # padding wider than the kernel
    ((13, 11), (3, 3), (4, 4), [6, 6, 6, 6], (6, 6)),  # stride and dilation share a factor: some inputs see no tap
    ((13, 11), (2, 3), (3, 2), [1, 0, 2, 3], (2, 3)),
    ((6, 9), (1, 1), (2, 3), [0, 0, 0, 0], (1, 1)),
    ((12, 10), (5, 4), (1, 1), [-1, -2, -2, -1], (1, 1)),
    ((3, 33), (1, 3), (1, 1), [0, 0, 6, 6], (1, 6)),
    ((2, 3), (5, 6), (1, 1), [4, 4, 5, 5], (1, 1)),
]


def each_in_both_layouts():
    """Every geometry in both layouts, of floats in the one and of halves in the other; the sweep has all of both."""
    for index, geometry in enumerate(GEOMETRIES):
        for channels_last in (True, False):
            for halves in (True, False):
                marks = [pytest.mark.sweep] if (index + channels_last + halves) % 2 else []
                yield pytest.param(*geometry, channels_last, halves, marks=marks)


@pytest.mark.parametrize("size, kernel, stride, padding, dilation, channels_last, halves", list(each_in_both_layouts()))
def test_geometries_are_exact(size, kernel, stride, padding, dilation, channels_last, halves):
    dtype, multiplier, channels = torch.float32, 1, 5
    if halves:
        dtype, multiplier, channels = ((torch.bfloat16, 3, 2), (torch.float16, 1, 16))[sum(kernel) % 2]
    draw = small_integers(torch.Generator().manual_seed(0), dtype)
    x, weight = draw((2, channels, *size)), draw((channels * multiplier, 1, *kernel))
    bias = draw((channels * multiplier,))
    geometry = list(stride), padding, list(dilation)
    shape = reference.depthwise_conv(x, weight, bias, *geometry, "none").shape
    grad = draw(tuple(shape))
    found = run(x, weight, bias, geometry, grad, channels_last)
    for got, want in zip(found, truth(x, weight, bias, geometry, grad), strict=True):
        assert exact(got, want)


@pytest.mark.parametrize("channels_last", [True, False])
def test_64_bit_offsets_give_the_same(channels_last, monkeypatch, forget_calls):
    x, weight, bias = integers(2, 6, 9, 12), integers(6, 1, 3, 3), integers(6)
    geometry = [2, 1], [1, 1, 1, 1], [1, 2]
    grad = integers(*reference.depthwise_conv(x, weight, bias, *geometry, "none").shape)
    narrow = run(x, weight, bias, geometry, grad, channels_last)
    monkeypatch.setattr(Shape, "wide", property(lambda self: True))
    wide = run(x, weight, bias, geometry, grad, channels_last)
    assert all(torch.equal(one, other) for one, other in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("activation", NAMES)
def test_activations_and_their_gradients(activation, channels_last):
    draw = normal(torch.Generator().manual_seed(0))
    x, weight, bias, grad = draw((2, 4, 6, 8)), draw((4, 1, 3, 3)), draw((4,)), draw((2, 4, 6, 8))
    geometry = [1, 1], [1, 1, 1, 1], [1, 1]
    found = run(x, weight, bias, geometry, grad, channels_last, activation)
    for got, want in zip(found, truth(x, weight, bias, geometry, grad, activation), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_activations_at_their_corners(activation):
    # Integers meet the corners exactly: there the derivative is what PyTorch says it is.
    x = torch.arange(-8.0, 8.0).reshape(1, 1, 16)
    weight, grad = torch.ones(1, 1, 1), torch.ones(1, 1, 16)
    geometry = [1], [0, 0], [1]
    found = run(x, weight, None, geometry, grad, False, activation)
    for got, want in zip(found, truth(x, weight, None, geometry, grad, activation), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


def test_nan_comes_through():
    x = torch.tensor([[[1.0, float("nan"), 1.0, 1.0]]])
    for activation in NAMES:
        (y,) = run(x, torch.ones(1, 1, 1), None, ([1], [0, 0], [1]), None, False, activation)
        assert y.isnan().tolist() == [[[False, True, False, False]]], activation


@pytest.mark.parametrize("channels_last", [True, False])
def test_float32_error_is_within_its_bound(channels_last):
    draw = normal(torch.Generator().manual_seed(0))
    x, weight, grad = draw((2, 4, 8, 8)), draw((4, 1, 5, 5)), draw((2, 4, 8, 8))
    geometry = [1, 1], [2, 2, 2, 2], [1, 1]
    found = run(x, weight, None, geometry, grad, channels_last)
    magnitudes = truth(x.abs(), weight.abs(), None, geometry, grad.abs())
    for got, want, magnitude, terms in zip(
        found, truth(x, weight, None, geometry, grad), magnitudes, (25, 25, 128), strict=True
    ):
        assert ((got.double() - want).abs() <= terms * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_any_strides_are_taken(channels_last):
    x = integers(2, 12, 6, 10)[:, ::2, :, 1:9]
    weight = integers(3, 3, 1, 6).permute(3, 2, 0, 1)
    grad = integers(1, 6, 1, 1).expand(2, 6, 6, 8)
    geometry = [1, 1], [1, 1, 1, 1], [1, 1]
    device_x, device_weight, device_grad = x.to(DEVICE), weight.to(DEVICE), grad.to(DEVICE)
    y = depthwise.forward(device_x, device_weight, None, *geometry, "none", last=channels_last)
    grads = depthwise.backward(
        device_grad, device_x, device_weight, None, *geometry, "none", [True, True, False], last=channels_last
    )
    expected = truth(x, weight, None, geometry, grad)
    assert exact(y.cpu(), expected[0])
    assert exact(grads[0].cpu(), expected[1])
    assert exact(grads[1].cpu(), expected[2])


@pytest.mark.parametrize("channels_last", [True, False])
def test_empty_batch(channels_last):
    x, weight, bias = torch.ones(0, 4, 6, 6), torch.ones(4, 1, 3, 3), torch.ones(4)
    geometry = [1, 1], [1, 1, 1, 1], [1, 1]
    y, grad_x, grad_weight, grad_bias = run(x, weight, bias, geometry, torch.ones(0, 4, 6, 6), channels_last)
    assert y.shape == (0, 4, 6, 6)
    assert grad_x.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("mask", [[True, False, False], [False, True, False], [False, False, True]])
def test_only_the_gradients_that_are_asked_for(mask):
    x, weight, bias = (tensor.to(DEVICE) for tensor in (integers(2, 4, 6, 6), integers(4, 1, 3, 3), integers(4)))
    geometry = [1, 1], [1, 1, 1, 1], [1, 1]
    grad = integers(2, 4, 6, 6).to(DEVICE)
    found = depthwise.backward(grad, x, weight, bias, *geometry, "none", mask, last=False)
    expected = reference.depthwise_conv_backward(*double((grad, x, weight, bias)), *geometry, "none", mask)
    assert [gradient is not None for gradient in found] == mask
    for got, want in zip(found, expected, strict=True):
        assert got is None or torch.equal(got.double(), want)


@pytest.mark.parametrize("channels_last", [True, False])
def test_bits_repeat(channels_last):
    draw = normal(torch.Generator().manual_seed(0))
    x, weight, bias = draw((4, 4, 9, 9)), draw((4, 1, 3, 3)), draw((4,))
    geometry = [1, 1], [1, 1, 1, 1], [1, 1]
    grad = draw((4, 4, 9, 9))
    first = run(x, weight, bias, geometry, grad, channels_last)
    for _ in range(20 if DEVICE == "cuda" else 1):
        again = run(x, weight, bias, geometry, grad, channels_last)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
