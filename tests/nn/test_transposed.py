"""Transposed layers against torch's transposed grouped convolutions."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import dwsep

RANKS = {
    1: (dwsep.nn.DepthwiseConvTranspose1d, nn.ConvTranspose1d),
    2: (dwsep.nn.DepthwiseConvTranspose2d, nn.ConvTranspose2d),
    3: (dwsep.nn.DepthwiseConvTranspose3d, nn.ConvTranspose3d),
}


def drawn(seed):
    """Options of a transposed convolution which torch takes, and a fitting size."""
    rng = random.Random(seed)
    axes = rng.choice((1, 2, 2, 3))
    pick = lambda low, high: tuple(rng.randint(low, high) for _ in range(axes))  # noqa: E731
    kernel, stride, dilation = pick(1, 5), pick(1, 4), pick(1, 3)
    padding = tuple(rng.randint(0, d * (k - 1)) for k, d in zip(kernel, dilation))
    extra = tuple(rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation))
    size = pick(2, 6)
    out = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + e
           for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra)]  # fmt: skip
    if min(out) < 1:
        padding = (0,) * axes
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
    return axes, kernel, options, size, rng.randint(1, 3), rng.random() < 0.5


@pytest.mark.parametrize("seed", range(80))
def test_depthwise_matches_torch_with_every_gradient(seed):
    axes, kernel, options, size, multiplier, bias = drawn(seed)
    ours, theirs = RANKS[axes]
    layer = ours(6, kernel, depth_multiplier=multiplier, bias=bias, **options)
    conv = theirs(6, 6 * multiplier, kernel, groups=6, bias=bias, **options)
    conv.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, *size, requires_grad=True)
    out, expected = layer(x), conv(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    for a, e in zip(
        torch.autograd.grad(out, [x, *layer.parameters()], grad),
        torch.autograd.grad(expected, [x, *conv.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        last = x.movedim(1, -1).contiguous().movedim(-1, 1)
        torch.testing.assert_close(layer(last), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_other_dtypes_and_layouts(memory_format, dtype):
    layer = dwsep.nn.DepthwiseConvTranspose2d(8, 3, 2, 1, 1, activation="gelu", dtype=dtype)
    x = torch.randn(2, 8, 5, 6, dtype=dtype).to(memory_format=memory_format)
    expected = nn.functional.gelu(
        nn.functional.conv_transpose2d(x.double(), layer.weight.double(), layer.bias.double(), 2, 1, 1, 8)
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer(x.clone().requires_grad_()), rtol=2e-2, atol=2e-2)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(layer(x).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_keeps_layout_and_gradients_of_gradients(memory_format):
    layer = dwsep.nn.DepthwiseConvTranspose2d(20, 4, stride=2, padding=1, output_padding=1)
    conv = nn.ConvTranspose2d(20, 20, 4, stride=2, padding=1, output_padding=1, groups=20)
    conv.load_state_dict(layer.state_dict())
    x = torch.randn(2, 20, 7, 9).contiguous(memory_format=memory_format).requires_grad_()
    found = []
    for module in (layer, conv):
        out = module(x)
        assert out.is_contiguous(memory_format=memory_format)
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, *module.parameters()]))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-3)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    with torch.no_grad():
        expected = conv(x.detach())
    functions = torch.func.vmap(torch.func.grad(lambda v: layer(v).sum()))(x.detach())
    assert functions.shape == x.shape
    torch.testing.assert_close(layer(x.detach().requires_grad_()), expected, rtol=1e-5, atol=1e-5)


def test_refuses():
    with pytest.raises(dwsep.ArgumentError, match="output_padding must be smaller than stride or dilation"):
        dwsep.nn.DepthwiseConvTranspose2d(4, 3, 2, output_padding=2)
    with pytest.raises(dwsep.ArgumentError, match="padding must be between 0"):
        dwsep.nn.DepthwiseConvTranspose2d(4, 3, padding=-1)
    with pytest.raises(dwsep.ArgumentError, match="x must be \\(N, 4, 2 spatial\\)"):
        dwsep.nn.DepthwiseConvTranspose2d(4, 3)(torch.ones(1, 3, 5, 5))
    with pytest.raises(dwsep.ArgumentError, match="output size must be at least 1"):
        dwsep.nn.DepthwiseConvTranspose2d(4, 3, padding=3)(torch.ones(1, 4, 2, 2))


def test_repr_names_what_is_not_default():
    layer = dwsep.nn.DepthwiseConvTranspose2d(8, 4, 2, 1, bias=False)
    assert repr(layer) == "DepthwiseConvTranspose2d(8, kernel_size=4, stride=2, padding=1, bias=False)"
