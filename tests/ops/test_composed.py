"""Separable convolutions in bfloat16 that train as two operators."""

from __future__ import annotations

import pytest
import torch

import dwsep
from dwsep import dispatch
from dwsep.geometry import ConvGeometry
from dwsep.kernels import reference
from dwsep.ops import _composed
from tests import problems


@pytest.mark.parametrize("kernel", [_composed.separable_conv, _composed.WITH_AUTOGRAD], ids=["operator", "direct"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "dilation", "multiplier"),
    [((3, 3), 1, 1, 1), ((3, 3), 1, 1, 2), ((3, 3), 2, 1, 1), ((5, 5), 1, 1, 1), ((3, 5), 1, 2, 1), ((5,), 2, 1, 1)],
)
@pytest.mark.parametrize("residual", ["none", "depthwise"])
def test_values_and_gradients_on_integers(kernel, channels_last, size, stride, dilation, multiplier, residual):
    axes = len(size)
    low = tuple(side for k in size for side in ((k - 1) * dilation // 2,) * 2)
    spatial, geometry = (9, 8)[:axes], (size, (stride,) * axes, (dilation,) * axes, low)
    outputs = 6 * multiplier if residual == "depthwise" else 5
    problem = problems.Problem("", 2, 6, multiplier, outputs, spatial, *geometry)
    draw = problems.small_integers(torch.Generator().manual_seed(0), torch.bfloat16)
    tensors = problem.tensors(draw, channels_last)
    results = []
    for function, dtype in ((kernel, torch.bfloat16), (reference.separable_conv, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        out = function(*leaves, *problem.geometry, "relu", "none", residual)
        weights = draw(tuple(out.shape)).to(dtype) if not results else results[0][-1].to(dtype)
        (out * weights).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves), weights])
    for got, expected in zip(*(result[:-1] for result in results), strict=True):
        assert got.dtype == torch.bfloat16
        # Sums of integers in float32, each rounded once; the gradient of what lies between was rounded, too.
        assert torch.allclose(got.double(), expected, rtol=2**-7, atol=2**-7 * expected.abs().max().item())


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="chosen where the native library is")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_trains_on_it(monkeypatch, autocast):
    monkeypatch.setattr(dispatch, "_has_bfloat16_products", lambda: True)
    monkeypatch.setattr(dispatch, "_cache", {})
    geometry = ConvGeometry.make(2, 3, padding="same", stride=1)
    selection = dispatch.select("separable_conv", geometry, torch.bfloat16, "cpu", gradient=True)
    assert selection.backend == "cpu"
    assert selection.direct is _composed.WITH_AUTOGRAD
    assert "cpu" not in selection.refused
    named = dispatch.select("separable_conv", geometry, torch.bfloat16, "cpu", "cpu", gradient=True)
    assert named.kernel is torch.ops.dwsep.separable_conv.default
    layer = dwsep.nn.DepthwiseSeparableConv2d(8, 16, 5, stride=2)
    exact = dwsep.nn.DepthwiseSeparableConv2d(8, 16, 5, stride=2).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 12, 12)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
    else:
        layer, x = layer.bfloat16(), x.bfloat16()
        out = layer(x)
    out.float().square().sum().backward()
    exact(x.double()).square().sum().backward()
    for got, expected in zip(layer.parameters(), exact.parameters(), strict=True):
        distance = (got.grad.double() - expected.grad).norm() / expected.grad.norm()
        assert distance < 0.02
