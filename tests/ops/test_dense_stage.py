"""``dense_stage``: a dense convolution with its input's norm and the sums of its output, against float64."""

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
    "behind a stem": ((2, 32, 28, 28), (96, 32, 3, 3), geometry(2, 1)),
    "stride beyond the kernel": ((2, 40, 17, 19), (24, 40, 2, 2), geometry(3, (1, 0, 0, 2))),
    "strided pixels": ((3, 48, 13, 14), (70, 48, 1, 1), geometry(2)),
    "dilation beyond the stride": ((1, 20, 23, 21), (33, 20, 3, 3), geometry(2, 3, 3)),
    "no padding": ((2, 32, 15, 15), (64, 32, 3, 3), geometry()),
}


@pytest.mark.parametrize("layout", ["last", "contiguous"])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_float64(name, activation, layout):
    torch.manual_seed(len(name))
    shape, weights, sizes = PROBLEMS[name]
    x, weight, bias = torch.randn(shape), torch.randn(weights), torch.randn(weights[0])
    if layout == "last":
        x, weight = last(x), last(weight)
    affine = (None, None) if activation == "none" else (torch.randn(shape[1]), torch.randn(shape[1]))
    load = (x, *affine)
    y, sums = ops.dense_stage(*load, activation, weight, bias, *sizes)
    expected, _ = stage_reference.dense_stage(*map(_wide, load), activation, weight.double(), bias.double(), sizes)
    close(y, expected)
    close(sums, stage_reference.sums_of(y))
    grad = torch.randn(y.shape)
    for correction in (None, torch.randn(2, weights[0])):
        given = (grad, y, correction, *load)
        found = ops.dense_stage_backward(*given, activation, weight, True, *sizes, [True, True])
        wanted = stage_reference.dense_stage_backward(
            *map(_wide, given), activation, weight.double(), True, sizes, [True, True]
        )
        for one, other in zip(found, wanted, strict=True):
            if other is None:
                assert one.numel() == 0
            else:
                close(one, other)
        for mask in ([True, False], [False, True]):
            some = ops.dense_stage_backward(*given, activation, weight, False, *sizes, mask)
            for one, other, wants in zip(some, found, [mask[0], mask[0], mask[1], False], strict=True):
                assert torch.equal(one, other) if wants else one.numel() == 0


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_integers_are_exact(data):
    kernel, stride, dilation = (data.draw(st.tuples(*[st.integers(1, most)] * 2)) for most in (5, 4, 3))
    padding = data.draw(st.tuples(*[st.integers(-1, 4)] * 4))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, n - padding[2 * i] - padding[2 * i + 1], 1 - padding[2 * i], 1 - padding[2 * i + 1])
             for i, n in enumerate(reach)]  # fmt: skip
    size = [data.draw(st.integers(n, n + 20)) for n in least]
    batch, channels, outputs = (data.draw(st.integers(1, most)) for most in (3, 40, 40))
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape).float()

    sizes = geometry(stride, padding, dilation)
    x, weight, bias = draw(batch, channels, *size), draw(outputs, channels, *kernel), draw(outputs)
    pending = data.draw(st.booleans())
    load = (x, draw(channels), draw(channels), "relu") if pending else (x, None, None, "none")
    y, sums = ops.dense_stage(*load, weight, bias, *sizes)
    expected = stage_reference.dense_stage(*load, weight, bias, sizes)
    assert torch.equal(y, expected[0])
    assert torch.equal(sums, expected[1])
    grad = torch.randint(-3, 4, y.shape).float()
    found = ops.dense_stage_backward(grad, y, None, *load, weight, True, *sizes, [True, True])
    wanted = stage_reference.dense_stage_backward(grad, y, None, *load, weight, True, sizes, [True, True])
    for one, other in zip(found, wanted, strict=True):
        assert one.numel() == 0 if other is None else torch.equal(one, other)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    torch.manual_seed(0)
    x, weight = last(torch.randn(3, 24, 37, 30)), torch.randn(40, 24, 3, 3)
    load = (x, torch.randn(24), torch.randn(24), "silu")
    sizes = geometry(2, 1)

    def run() -> list[Tensor]:
        y, sums = ops.dense_stage(*load, weight, None, *sizes)
        grad, correction = torch.cos(y), torch.ones(2, 40)
        return [y, sums, *ops.dense_stage_backward(grad, y, correction, *load, weight, False, *sizes, [True, True])]

    expected, before = run(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for one, other in zip(run(), expected, strict=True):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


def test_opcheck():
    for name in ("images", "dilation"):
        shape, weights, sizes = PROBLEMS[name]
        x, weight = last(torch.randn(shape)), torch.randn(weights)
        for bias in (None, torch.randn(weights[0])):
            affine = (None, None) if bias is None else (torch.randn(shape[1]), torch.randn(shape[1]))
            load = (x, *affine, "relu")
            opcheck(ops.dense_stage, (*load, weight, bias, *sizes))
            y, _ = ops.dense_stage(*load, weight, bias, *sizes)
            correction = None if bias is None else torch.randn(2, weights[0])
            given = (torch.randn_like(y), y, correction, *load, weight, bias is not None, *sizes)
            opcheck(ops.dense_stage_backward, (*given, [True, bias is None]))


@NATIVE
def test_what_does_not_fit():
    load, weight = (torch.randn(2, 3, 8, 8), None, None, "none"), torch.randn(4, 3, 3, 3)
    y, _ = ops.dense_stage(*load, weight, None, *geometry())
    for arguments, message in (
        ((*load, torch.randn(4, 2, 3, 3), None, *geometry()), "dense weight"),
        ((*load, weight, torch.randn(3), *geometry()), "dense bias"),
        ((*load, weight.double(), None, *geometry()), "dense weight"),
        ((torch.randn(2, 3, 2, 2), *load[1:], weight, None, *geometry()), "output size"),
        ((*load, weight, None, [1], [0, 0], [1]), "entries"),
        ((load[0], torch.randn(2), torch.randn(3), "none", weight, None, *geometry()), "scale"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.dense_stage(*arguments)
    with pytest.raises(RuntimeError, match="grad"):
        ops.dense_stage_backward(y[:, :, 1:], y, None, *load, weight, False, *geometry(), [True, True])
    with pytest.raises(RuntimeError, match="output_mask"):
        ops.dense_stage_backward(y, y, None, *load, weight, False, *geometry(), [True])


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
    for wants in ([True] * 6, [False] + [True] * 5, [False, True, False, False, False, True]):
        rest = ([grad], [x], parameters, made, table, activations, norms, [3], wants)
        for one, other in zip(ops.training_program_backward(*rest), training_program._backward(*rest), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
