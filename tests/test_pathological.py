"""Geometries and memory at the edge of what a convolution allows: torch's result or torch's class of error.

Uninitialised memory is NaN here, so that an element which nothing wrote is found; a loop over a dilation rather than
over the taps would run into the time limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dwsep
from dwsep import functional

pytestmark = pytest.mark.timeout(120)
BACKENDS = ["reference"] + ["cpu"] * dwsep.ops.native_status().loaded
PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def integers(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape).float()


def both_ways(x: Tensor, depthwise: Tensor, pointwise: Tensor, options: dict, backend: str) -> None:
    """Both operators and their gradients against torch's own convolutions in float64, exact on integers."""
    axes = depthwise.dim() - 2
    leaves = [tensor.detach().requires_grad_() for tensor in (x, depthwise, pointwise)]
    wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
    one, two = (getattr(functional, f"{name}_conv{axes}d") for name in ("depthwise", "depthwise_separable"))
    outs = one(*leaves[:2], backend=backend, **options), two(*leaves, backend=backend, **options)
    inner = PLAIN[axes](*wide[:2], None, groups=x.shape[1], **options)
    for out, expected in zip(outs, (inner, PLAIN[axes](inner, wide[2])), strict=True):
        assert torch.equal(out.double(), expected)
        grad = integers(*out.shape)
        found = torch.autograd.grad(out, leaves, grad, allow_unused=True)
        wanted = torch.autograd.grad(expected, wide, grad.double(), allow_unused=True, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            assert (a is None and b is None) or torch.equal(a.double(), b)


GEOMETRIES = {
    "one pixel": ((1, 1), (3, 3), {"padding": 1}),
    "one pixel, padding beyond the kernel": ((1, 1), (3, 3), {"padding": 4}),
    "one pixel, kernel of one": ((1, 1), (1, 1), {}),
    "kernel as large as the padded input": ((5, 4), (7, 6), {"padding": 1}),
    "kernel far larger than the input": ((2, 3), (31, 15), {"padding": (15, 7)}),
    "stride larger than the input": ((5, 7), (3, 3), {"stride": (11, 1000), "padding": 1}),
    "stride almost as large as allowed": ((5, 7), (3, 3), {"stride": 2**30, "padding": 1}),
    "stride as large as allowed": ((5, 7), (3, 3), {"stride": 2**31 - 1, "padding": 1}),
    "every tap but one outside": ((5, 7), (3, 3), {"dilation": (6, 9), "padding": (6, 9)}),
    "padding far larger than the input": ((3, 2), (3, 3), {"padding": (40, 300), "stride": (7, 1)}),
    "a row": ((1, 5000), (1, 5), {"padding": (0, 2)}),
    "a column": ((5000, 1), (5, 1), {"padding": (2, 0)}),
    "one axis": ((1,), (3,), {"padding": 1}),
    "one long axis": ((70001,), (3,), {"padding": 1, "stride": 3}),
    "three axes of one": ((1, 1, 1), (3, 3, 3), {"padding": 1}),
    "three axes, stride larger than the input": ((3, 2, 4), (3, 1, 3), {"stride": 9, "padding": (1, 0, 1)}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch, channels, outputs", [(1, 1, 1), (2, 19, 3), (0, 4, 5)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometry_gives_torchs_result(geometry, batch, channels, outputs, backend):
    if geometry == "stride as large as allowed" and backend == "reference":
        pytest.skip(
            "PyTorch 2.14's own gradient of the input is wrong there in channels last: oneDNN's indices overflow"
        )
    spatial, kernel, options = GEOMETRIES[geometry]
    x, weight = integers(batch, channels, *spatial), integers(channels, 1, *kernel)
    pointwise = integers(outputs, channels, *(1,) * len(spatial))
    both_ways(x, weight, pointwise, options, backend)
    both_ways(x.movedim(1, -1).contiguous().movedim(-1, 1), weight, pointwise, options, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_256(backend):
    x = integers(256, 5, 6, 7)
    both_ways(x, integers(10, 1, 3, 3), integers(4, 10, 1, 1), {"padding": 1}, backend)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="plain PyTorch pads a copy of the input, which no memory holds")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dilation", [10**6, 2**29])
def test_huge_dilation_leaves_the_middle_tap(dilation, channels_last):
    x, weight, pointwise = integers(2, 19, 5, 6), integers(19, 1, 3, 3), integers(7, 19, 1, 1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    middle = x * weight[:, 0, 1, 1].view(1, -1, 1, 1)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, pointwise)]
    options = {"padding": dilation, "dilation": dilation, "backend": "cpu"}
    out = functional.depthwise_separable_conv2d(*leaves, **options)
    assert torch.equal(functional.depthwise_conv2d(x, weight, **options), middle)
    assert torch.equal(out, F.conv2d(middle, pointwise))
    grad = integers(*out.shape)
    inner = F.conv2d(grad, pointwise.transpose(0, 1))
    found = torch.autograd.grad(out, leaves, grad)
    assert torch.equal(found[0], inner * weight[:, 0, 1, 1].view(1, -1, 1, 1))
    wanted = torch.zeros_like(weight)
    wanted[:, 0, 1, 1] = (inner * x).sum((0, 2, 3))
    assert torch.equal(found[1], wanted)


def _refused(call: Callable[[], object]) -> type[Exception]:
    with pytest.raises(Exception) as caught:
        call()
    return caught.type


@pytest.mark.parametrize(
    ("spatial", "kernel", "options"),
    [
        ((4, 6), (5, 3), {}),
        ((4, 6), (3, 9), {"padding": 1}),
        ((4, 6), (3, 3), {"dilation": 3}),
        ((4, 6), (2, 2), {"dilation": 2**30, "padding": 5}),
        ((3,), (4,), {}),
        ((3, 3, 3), (3, 3, 4), {}),
        ((0, 6), (3, 3), {}),
        ((0,), (1,), {}),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [2, 0])
def test_kernel_larger_than_the_padded_input_raises_torchs_class(spatial, kernel, options, backend, batch):
    axes = len(spatial)
    x, weight = torch.ones(batch, 4, *spatial), torch.ones(4, 1, *kernel)
    pointwise = torch.ones(2, 4, *(1,) * axes)
    one, two = (getattr(functional, f"{name}_conv{axes}d") for name in ("depthwise", "depthwise_separable"))
    kind = _refused(lambda: PLAIN[axes](torch.ones(2, 4, *spatial), weight, groups=4, **options))
    options = {"padding": 0, **options, "backend": backend}
    for call in (lambda: one(x, weight, **options), lambda: two(x, weight, pointwise, **options)):
        assert issubclass(_refused(call), kind)


def _views() -> dict[str, Tensor]:
    """Inputs (2, 6, 5, 7) in memory of every kind, none of it dense."""
    wide = integers(2, 6, 5, 14)
    return {
        "every other column": wide[..., ::2],
        "columns from the second": wide[..., 3:10],
        "offset by one element": integers(2 * 6 * 5 * 7 + 1)[1:].view(2, 6, 5, 7),
        "channels last, offset": integers(2 * 6 * 5 * 7 + 1)[1:].view(2, 5, 7, 6).movedim(-1, 1),
        "channels last, some of the channels": integers(2, 5, 7, 20)[..., 9:15].movedim(-1, 1),
        "channels last, rows apart": integers(2, 5, 9, 6)[:, :, 1:8].movedim(-1, 1),
        "axes swapped": integers(7, 5, 6, 2).permute(3, 2, 1, 0),
        "batch innermost": integers(6, 5, 7, 2).movedim(-1, 0),
        "batch expanded": integers(1, 6, 5, 7).expand(2, 6, 5, 7),
        "channels expanded": integers(2, 1, 5, 7).expand(2, 6, 5, 7),
        "rows expanded": integers(2, 6, 1, 7).expand(2, 6, 5, 7),
        "columns expanded": integers(2, 6, 5, 1).expand(2, 6, 5, 7),
        "one number": integers(1).expand(2, 6, 5, 7),
        "windows that overlap": integers(100).as_strided((2, 6, 5, 7), (3, 5, 2, 1)),
        "windows that overlap, channels innermost": integers(100).as_strided((2, 6, 5, 7), (20, 1, 4, 2)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", _views())
def test_input_in_any_memory(view, backend):
    torch.manual_seed(1)
    x = _views()[view]
    before = x.clone()
    both_ways(x, integers(12, 1, 3, 2), integers(5, 12, 1, 1), {"padding": 1, "stride": (1, 2)}, backend)
    assert torch.equal(x, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("view", _views())
def test_parameters_and_gradients_in_any_memory(view, channels_last, backend):
    """Weights and biases that are slices, transposed or expanded, and a gradient in the same memory as the inputs."""
    x = integers(2, 6, 5, 7)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    depthwise = integers(6, 1, 3, 6).transpose(2, 3)[:, :, ::2, :]
    pointwise = integers(6, 12)[:, ::2].t()[..., None, None]
    biases = integers(1).expand(6), integers(12)[::2]
    tensors = [x, depthwise, pointwise, *biases]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    dense = [tensor.detach().contiguous().requires_grad_() for tensor in tensors]
    grad = _views()[view]
    for function, count in ((functional.depthwise_conv2d, 3), (functional.depthwise_separable_conv2d, 5)):
        picked = [0, 1, 3] if count == 3 else range(5)
        outs = []
        for source, gradient in ((leaves, grad), (dense, grad.contiguous())):
            arguments = [source[index] for index in picked]
            out = function(*arguments, padding=1, backend=backend)
            outs.append((out, *torch.autograd.grad(out, arguments, gradient)))
        for got, wanted in zip(*outs, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_reaches_what_it_touches_and_nothing_else(backend):
    x = torch.randn(2, 17, 9, 9)
    x[1, 3, 4, 4] = math.nan
    weight = torch.randn(17, 1, 3, 3)
    out = functional.depthwise_conv2d(x, weight, padding=1, backend=backend)
    wanted = torch.zeros_like(out, dtype=torch.bool)
    wanted[1, 3, 3:6, 3:6] = True
    assert torch.equal(out.isnan(), wanted)
