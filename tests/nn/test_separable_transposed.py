"""Transposed separable layers against torch's transposed convolution and the parts behind it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep

CONVS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("axes", CONVS)
@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_separable_matches_its_parts(axes, order):
    layer = getattr(dwsep.nn, f"DepthwiseSeparableConvTranspose{axes}d")(
        6, 8, 4, 2, 1, depth_multiplier=2, order=order, norm="batch", inner_norm="batch", activation="relu",
        inner_activation="silu",
    )  # fmt: skip
    width = 6 if order == "depthwise_first" else 4
    conv = CONVS[axes](width, width * 2, 4, 2, 1, groups=width)
    conv.load_state_dict(layer.depthwise.state_dict())
    x = torch.randn(2, 6, *(5, 4, 3)[:axes])
    first, second = (conv, layer.pointwise) if order == "depthwise_first" else (layer.pointwise, conv)
    expected = layer.norm(second(layer.inner_activation(layer.inner_norm(first(x))))).relu()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(x).shape == (2, 8, *(2 * n for n in x.shape[2:]))
    assert layer(x[0]).shape == layer(x).shape[1:]


def test_pointwise_first_needs_channels_which_the_multiplier_divides():
    with pytest.raises(dwsep.ArgumentError, match="multiple of depth_multiplier, got 7 and 2"):
        dwsep.nn.DepthwiseSeparableConvTranspose2d(4, 7, depth_multiplier=2, order="pointwise_first")


def test_repr_names_channels_and_order():
    layer = dwsep.nn.DepthwiseSeparableConvTranspose2d(8, 4, 4, 2, 1, order="pointwise_first")
    assert repr(layer).startswith("DepthwiseSeparableConvTranspose2d(\n  8, 4, order='pointwise_first'\n  (pointwise)")
