"""Lightweight convolution against the paper's sum, written out."""

from __future__ import annotations

import pytest
import torch

import dwsep

Lightweight = dwsep.nn.LightweightConv1d


def written_out(layer, x, left):
    """Equation 4 of the paper, element by element, in float64."""
    weight = layer.weight.double().softmax(-1) if layer.softmax else layer.weight.double()
    n, channels, length = x.shape
    taps, dilation = layer.geometry.kernel_size[0], layer.geometry.dilation[0]
    out = torch.zeros(n, channels, length, dtype=torch.float64)
    for c in range(channels):
        head = c * layer.heads // channels
        for i in range(length):
            for j in range(taps):
                source = i + j * dilation - left
                if 0 <= source < length:
                    out[:, c, i] += weight[head, 0, j] * x[:, c, source].double()
        if layer.bias is not None:
            out[:, c] += layer.bias[c].double()
    return out


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("padding, dilation, left", [("same", 1, 1), ("causal", 1, 2), ("causal", 3, 6)])
@pytest.mark.parametrize("softmax, bias", [(True, False), (False, True)])
def test_matches_the_sum_written_out(heads, padding, dilation, left, softmax, bias):
    layer = Lightweight(8, 3, heads, padding, dilation, softmax=softmax, bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 8, 11)
    torch.testing.assert_close(layer(x).double(), written_out(layer, x, left), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_gradients_match_a_float64_computation():
    layer = Lightweight(8, 4, 2, "causal")
    x = torch.randn(2, 8, 11, requires_grad=True)
    grad = torch.randn(2, 8, 11)
    actual = torch.autograd.grad(layer(x), [x, layer.weight], grad)
    double = x.detach().double().requires_grad_()
    weight = layer.weight.detach().double().requires_grad_()
    kernels = weight.softmax(-1).repeat_interleave(4, 0)
    padded = torch.nn.functional.pad(double, (3, 0))
    out = torch.nn.functional.conv1d(padded, kernels, groups=8)
    for a, e in zip(actual, torch.autograd.grad(out, [double, weight], grad.double()), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5)


def test_kernels_sum_to_one_and_are_shared():
    kernels = Lightweight(12, 5, 3).kernels()
    torch.testing.assert_close(kernels.sum(-1), torch.ones(12, 1))
    assert (kernels > 0).all()
    for head in range(3):
        assert (kernels[4 * head : 4 * head + 4] == kernels[4 * head]).all()
    assert not torch.equal(kernels[0], kernels[4])


def test_weight_dropout_drops_taps_in_training_alone():
    layer = Lightweight(1024, 8, 1024, weight_dropout=0.25)
    plain = layer.eval().kernels()
    dropped = layer.train().kernels()
    zero = dropped == 0
    assert 0.22 < zero.float().mean() < 0.28
    torch.testing.assert_close(dropped[~zero], plain[~zero] / 0.75)


def test_refuses():
    with pytest.raises(dwsep.ArgumentError, match="heads must divide in_channels, got 3 and 8"):
        Lightweight(8, 3, 3)
    with pytest.raises(dwsep.ArgumentError, match="weight_dropout must be at least 0 and below 1, got 1"):
        Lightweight(8, 3, weight_dropout=1)
    with pytest.raises(dwsep.ArgumentError, match="x must be \\(N, 8, L\\)"):
        Lightweight(8, 3)(torch.ones(2, 4, 9))
    assert repr(Lightweight(8, 3, 4, "causal")) == "LightweightConv1d(8, kernel_size=3, heads=4, padding='causal')"
