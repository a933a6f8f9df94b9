"""Bilinear resizing against torch's in float64, on every instruction set."""

from __future__ import annotations

import random

import pytest
import torch
from torch.library import opcheck

import dwsep
from tests import isas
from tests.problems import last

ops, aten = torch.ops.dwsep, torch.ops.aten
needs_native = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


def check_many(seed: int, count: int) -> None:
    """Drawn sizes, larger and smaller, of one pixel too; few channels and many, no whole vectors."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for index in range(count):
        batch, channels = rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 3, 7, 16, 21, 48, 64, 70, 130))
        sizes = [rng.choice((1, 2, 3, 5, 8, 16, 33)) for _ in range(2)]
        scales = [rng.choice((0.3, 0.5, 1.0, 1.7, 2.0, 4.0)) for _ in range(2)] if index % 3 == 0 else []
        size = [int(n * s) for n, s in zip(sizes, scales)] if scales else [rng.randint(1, 40) for _ in range(2)]
        if min(size) < 1:
            continue
        align = rng.random() < 0.5
        both = scales or [None, None]
        x = last(torch.randn(batch, channels, *sizes))
        what = f"{tuple(x.shape)} to {size} {align=} {scales=}"
        y = ops.resize_bilinear(x, size, align, scales)
        wanted = aten.upsample_bilinear2d(x.double(), size, align, *both)
        assert y.movedim(1, -1).is_contiguous(), what
        # torch's own positions are float32 in float32, as these are.
        torch.testing.assert_close(y.double(), wanted, rtol=2e-5, atol=2e-5, msg=what)
        grad = last(torch.randn_like(y))
        found = ops.resize_bilinear_backward(grad, sizes, align, scales)
        wanted = aten.upsample_bilinear2d_backward(grad.double(), size, list(x.shape), align, *both)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-4, msg=what)


@needs_native
@pytest.mark.parametrize("isa", isas.SUPPORTED)
def test_equals_torch(isa):
    isas.run_on(isa, "from tests.ops import test_resize as t; t.check_many(0, 200)")


@needs_native
def test_the_same_size_is_a_copy_and_constants_stay():
    x = last(torch.randn(2, 5, 6, 7))
    for align in (False, True):
        y = ops.resize_bilinear(x, [6, 7], align, [])
        assert torch.equal(y, x)
        assert y.data_ptr() != x.data_ptr()
        ones = ops.resize_bilinear(last(torch.ones(1, 3, 4, 5)), [13, 9], align, [])
        torch.testing.assert_close(ones, torch.ones_like(ones))


def test_infinities_and_nans_reach_what_they_reach_in_torch():
    x = last(torch.zeros(1, 20, 5, 5))
    x[0, 3, 2, 2], x[0, 4, 0, 0] = torch.inf, torch.nan
    for align in (False, True):
        y, wanted = ops.resize_bilinear(x, [11, 9], align, []), aten.upsample_bilinear2d(x, [11, 9], align)
        assert torch.equal(y.isnan(), wanted.isnan())
        assert torch.equal(y.isinf(), wanted.isinf())


# torch's own check reads .grad of non-leaf tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("scales", [[], [2.5, 1.5]])
def test_opcheck(layout, scales):
    x = torch.randn(2, 3, 4, 6)
    x = (last(x) if layout == "channels_last" else x).requires_grad_()
    size = [int(n * s) for n, s in zip((4, 6), scales)] if scales else [7, 5]
    opcheck(ops.resize_bilinear, (x, size, False, scales))
    opcheck(ops.resize_bilinear, (x, size, True, scales))
    opcheck(ops.resize_bilinear_backward, (torch.randn(2, 3, *size).requires_grad_(), [4, 6], False, scales))


@pytest.mark.parametrize("align", [False, True])
def test_derivatives_of_both_orders(align):
    x = last(torch.randn(2, 3, 4, 6)).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    found, wanted = [], []
    for leaf, resize, results in (
        (x, lambda x: ops.resize_bilinear(x, [9, 7], align, []), found),
        (plain, lambda x: aten.upsample_bilinear2d(x, [9, 7], align), wanted),
    ):
        y = resize(leaf)
        (grad,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), leaf)
        results += [y.detach(), grad.detach(), second]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_an_empty_batch():
    x = torch.zeros(0, 3, 4, 5)
    assert ops.resize_bilinear(x, [8, 9], False, []).shape == (0, 3, 8, 9)


@needs_native
@pytest.mark.parametrize(
    ("shape", "size", "scales", "message"),
    [
        ((2, 3, 4), [8, 8], [], "x must have shape"),
        ((1, 3, 0, 4), [8, 8], [], "x must have shape"),
        ((1, 3, 4, 4), [8], [], "size must be two positive integers"),
        ((1, 3, 4, 4), [8, 0], [], "size must be two positive integers"),
        ((1, 3, 4, 4), [8, 8], [2.0], "scales must be none or two, got 1"),
    ],
)
def test_what_is_refused(shape, size, scales, message):
    with pytest.raises(RuntimeError, match=message):
        ops.resize_bilinear(torch.zeros(shape), size, True, scales)


@needs_native
def test_repeats_bit_for_bit_with_any_number_of_threads():
    x = last(torch.randn(3, 21, 17, 19))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            y = ops.resize_bilinear(x, [40, 33], True, [])
            found.append((y, ops.resize_bilinear_backward(y, [17, 19], True, [])))
    finally:
        torch.set_num_threads(threads)
    for pair in found[1:]:
        assert all(map(torch.equal, pair, found[0]))
