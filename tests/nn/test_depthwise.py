"""Depthwise layers against torch's grouped convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import dwsep

RANKS = {
    1: (dwsep.nn.DepthwiseConv1d, nn.Conv1d),
    2: (dwsep.nn.DepthwiseConv2d, nn.Conv2d),
    3: (dwsep.nn.DepthwiseConv3d, nn.Conv3d),
}
SIZES = (9, 8, 7)


@pytest.mark.parametrize("axes", RANKS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("multiplier, bias", [(1, True), (3, False)])
def test_forward_matches_grouped_convolution(axes, padding_mode, multiplier, bias):
    ours, theirs = RANKS[axes]
    options = {"stride": 2, "padding": 2, "dilation": 2, "bias": bias, "padding_mode": padding_mode}
    layer = ours(6, 3, depth_multiplier=multiplier, **options)
    conv = theirs(6, 6 * multiplier, 3, groups=6, **options)
    conv.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, *SIZES[:axes])
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride, dilation", list(itertools.product([(1, 2), (3, 1)], [(2, 1), (1, 3)])))
def test_stride_and_dilation_may_differ_per_axis(stride, dilation):
    layer = dwsep.nn.DepthwiseConv2d(4, (3, 5), stride, "same", dilation)
    low = [d * (k - 1) // 2 for d, k in zip(dilation, (3, 5))]
    conv = nn.Conv2d(4, 4, (3, 5), stride, low, dilation, groups=4)
    conv.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 17, 19)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_asymmetric_and_cropping_padding(padding_mode):
    layer = dwsep.nn.DepthwiseConv2d(3, 3, padding=[(-1, 2), (3, -2)], padding_mode=padding_mode)
    x = torch.randn(1, 3, 8, 9)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = nn.functional.pad(x[:, :, 1:, :-2], (3, 0, 0, 2), mode=mode)
    expected = nn.functional.conv2d(padded, layer.weight, layer.bias, groups=3)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_causal_output_never_looks_ahead():
    layer = dwsep.nn.DepthwiseConv1d(2, 3, padding="causal", dilation=2)
    x = torch.randn(1, 2, 12)
    changed = x.clone()
    changed[..., 7:] += 1
    assert torch.equal(layer(x)[..., :7], layer(changed)[..., :7])
    assert not torch.equal(layer(x)[..., 7:], layer(changed)[..., 7:])


def test_activation_forms():
    x = torch.randn(1, 3, 5, 5)
    plain = dwsep.nn.DepthwiseConv2d(3, 3)
    for activation in ("relu", nn.ReLU, nn.ReLU(), torch.relu):
        layer = dwsep.nn.DepthwiseConv2d(3, 3, activation=activation)
        layer.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer(x), plain(x).relu())


def test_initialisation_is_within_the_bound_of_its_taps():
    layer = dwsep.nn.DepthwiseConv2d(4096, 3)
    bound = 1 / 3
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
        assert abs(parameter.std().item() - bound / 3**0.5) < 0.01


def test_device_and_dtype_reach_the_parameters():
    layer = dwsep.nn.DepthwiseConv2d(3, 3, device="meta", dtype=torch.float64)
    assert layer.weight.device.type == "meta"
    assert layer.bias.dtype == torch.float64


def test_repr_names_what_is_not_default():
    layer = dwsep.nn.DepthwiseConv2d(8, (3, 5), 2, "same", dilation=3, bias=False, depth_multiplier=2)
    assert repr(layer) == (
        "DepthwiseConv2d(8, kernel_size=(3, 5), stride=2, padding='same', dilation=3, depth_multiplier=2, bias=False)"
    )
