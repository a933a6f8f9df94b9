"""``dense_stage``: a network's first convolution with the sums of its output, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import dwsep
from dwsep.kernels import stage_reference
from dwsep.ops import training_program
from dwsep.ops.training_program import ACTIVATIONS, Kind, Statistics
from tests.ops.test_mixed_stage import close
from tests.ops.test_training_program import _row
from tests.problems import last

ops = torch.ops.dwsep
NATIVE = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)
Geometry = tuple[list[int], list[int], list[int]]


def geometry(stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Geometry:
    """From a number for all sides or from each of them."""

    def sides(value: Any, count: int) -> list[int]:
        return [value] * count if isinstance(value, int) else list(value)

    return sides(stride, 2), sides(padding, 4), sides(dilation, 2)


# x, weight, geometry.
PROBLEMS = {
    "images": ((2, 3, 64, 64), (32, 3, 3, 3), geometry(2, 1)),
    "padded as TensorFlow does": ((2, 3, 33, 34), (16, 3, 3, 3), geometry(2, (0, 1, 0, 1))),
    "7x7": ((1, 3, 40, 37), (24, 3, 7, 7), geometry(2, 3)),
    "patches": ((2, 3, 32, 32), (40, 3, 4, 4), geometry(4)),
    "one channel": ((3, 1, 28, 28), (9, 1, 3, 3), geometry(1, 1)),
    "dilation": ((1, 2, 20, 23), (5, 2, 3, 2), geometry((1, 2), (2, 0, 1, 4), (2, 3))),
    "cropped": ((2, 3, 19, 18), (7, 3, 3, 3), geometry(1, (-1, 2, 0, -3))),
    "1x1, stride": ((2, 3, 16, 16), (8, 3, 1, 1), geometry(2)),
    "one pixel": ((4, 3, 5, 4), (6, 3, 5, 4), geometry()),
    "beyond the image": ((1, 3, 2, 2), (4, 3, 5, 5), geometry(3, 6)),
    "one output": ((2, 17, 6, 6), (1, 17, 3, 3), geometry(1, 1)),
    "many outputs": ((1, 4, 30, 30), (200, 4, 2, 2), geometry()),
    "wide": ((1, 3, 4, 1000), (16, 3, 3, 3), geometry(2, 1)),
}


@pytest.mark.parametrize("layout", ["last", "contiguous"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_float64(name, layout):
    torch.manual_seed(len(name))
    shape, weights, sizes = PROBLEMS[name]
    x, weight, bias = torch.randn(shape), torch.randn(weights), torch.randn(weights[0])
    if layout == "last":
        x, weight = last(x), last(weight)
    y, sums = ops.dense_stage(x, weight, bias, *sizes)
    expected, _ = stage_reference.dense_stage(x.double(), weight.double(), bias.double(), sizes)
    close(y, expected)
    close(sums, stage_reference.sums_of(y))
    grad = torch.randn(y.shape)
    for correction in (None, torch.randn(2, weights[0])):
        found = ops.dense_stage_backward(grad, y, correction, x, weight, True, *sizes)
        wide = [None if t is None else t.double() for t in (grad, y, correction, x, weight)]
        for got, wanted in zip(found, stage_reference.dense_stage_backward(*wide, True, sizes), strict=True):
            close(got, wanted)
    assert ops.dense_stage_backward(grad, y, None, x, weight, False, *sizes)[1].numel() == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_integers_are_exact(data):
    kernel, stride, dilation = (data.draw(st.tuples(*[st.integers(1, most)] * 2)) for most in (5, 4, 3))
    padding = data.draw(st.tuples(*[st.integers(-1, 4)] * 4))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, n - padding[2 * i] - padding[2 * i + 1], 1 - padding[2 * i], 1 - padding[2 * i + 1])
             for i, n in enumerate(reach)]  # fmt: skip
    size = [data.draw(st.integers(n, n + 20)) for n in least]
    batch, channels, outputs = (data.draw(st.integers(1, most)) for most in (3, 6, 40))
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape).float()

    sizes = geometry(stride, padding, dilation)
    x, weight, bias = draw(batch, channels, *size), draw(outputs, channels, *kernel), draw(outputs)
    y, sums = ops.dense_stage(x, weight, bias, *sizes)
    expected = stage_reference.dense_stage(x, weight, bias, sizes)
    assert torch.equal(y, expected[0])
    assert torch.equal(sums, expected[1])
    grad = torch.randint(-3, 4, y.shape).float()
    found = ops.dense_stage_backward(grad, y, None, x, weight, True, *sizes)
    for got, wanted in zip(
        found, stage_reference.dense_stage_backward(grad, y, None, x, weight, True, sizes), strict=True
    ):
        assert torch.equal(got, wanted)


def test_opcheck():
    for name in ("images", "dilation"):
        shape, weights, sizes = PROBLEMS[name]
        x, weight = last(torch.randn(shape)), torch.randn(weights)
        for bias in (None, torch.randn(weights[0])):
            opcheck(ops.dense_stage, (x, weight, bias, *sizes))
            y, _ = ops.dense_stage(x, weight, bias, *sizes)
            correction = None if bias is None else torch.randn(2, weights[0])
            opcheck(ops.dense_stage_backward, (torch.randn_like(y), y, correction, x, weight, bias is not None, *sizes))


@NATIVE
def test_what_does_not_fit():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    y, _ = ops.dense_stage(x, weight, None, *geometry())
    for arguments, message in (
        ((x, torch.randn(4, 2, 3, 3), None, *geometry()), "dense weight"),
        ((x, weight, torch.randn(3), *geometry()), "dense bias"),
        ((x, weight.double(), None, *geometry()), "dense weight"),
        ((torch.randn(2, 3, 2, 2), weight, None, *geometry()), "output size"),
        ((x, weight, None, [1], [0, 0], [1]), "entries"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.dense_stage(*arguments)
    with pytest.raises(RuntimeError, match="grad"):
        ops.dense_stage_backward(y[:, :, 1:], y, None, x, weight, False, *geometry())


@NATIVE
@pytest.mark.parametrize("statistics", list(Statistics))
def test_in_a_program(statistics):
    """A stem with a norm, a depthwise convolution of it, a pointwise one."""
    pads = {f"pad_{side}": 1 for side in ("top", "bottom", "left", "right")}
    stem = {"bias": 1, "norm": 0, "norm_weight": 2, "stride_h": 2, "stride_w": 2}
    rows = [
        _row(Kind.CONV, 0, 1, weight=0, depthwise=2, **stem, **pads),
        _row(Kind.CONV, 1, 2, weight=3, depthwise=1, **pads),
        _row(Kind.CONV, 2, 3, weight=4),
    ]
    table = [number for row in rows for number in row]
    activations = [ACTIVATIONS.index(name) for name in ("none", "relu6", "none", "none")]
    norms = [float(statistics), 1e-5, 0.1]
    x = last(torch.randn(2, 3, 17, 18))
    parameters = [torch.randn(s) for s in ((20, 3, 3, 3), (20,), (20,), (20, 1, 3, 3), (6, 20, 1, 1))]
    running = [torch.zeros(20), torch.ones(20)]
    made = ops.training_program([x], parameters, running, table, activations, norms)
    expected = training_program._forward([x], parameters, [torch.zeros(20), torch.ones(20)], table, activations, norms)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    grad = last(torch.randn_like(made[-1]))
    for wants in ([False] + [True] * 5, [False, True, False, False, False, True]):
        rest = ([grad], [x], parameters, made, table, activations, norms, [3], wants)
        for one, other in zip(ops.training_program_backward(*rest), training_program._backward(*rest), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.training_program_backward([grad], [x], parameters, made, table, activations, norms, [3], [True] * 6)
