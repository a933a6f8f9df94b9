"""Dense twins keep what is not a factor, and refuse what they cannot stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dwsep.networks._dense import dense_twin_
from dwsep.nn import DepthwiseSeparableConv2d, InvertedResidual, LightweightConv1d


def test_a_separable_layer_becomes_one_convolution():
    layer = DepthwiseSeparableConv2d(
        8, 8, 5, stride=1, dilation=2, bias=False, norm="batch", activation="relu", inner_norm="batch", residual="input"
    )
    norm = layer.norm
    twin = dense_twin_(nn.Sequential(layer))[0]
    x = torch.randn(2, 8, 9, 9)
    assert twin.norm is norm
    assert twin.conv.weight.shape == (8, 8, 5, 5)
    twin.eval()
    torch.testing.assert_close(twin(x), (twin.conv(x) / (1 + norm.eps) ** 0.5).relu() + x)


def test_an_inverted_residual_becomes_two_convolutions():
    block = InvertedResidual(8, 8, 3, expansion=4, squeeze_channels=4)
    twin = dense_twin_(nn.Sequential(block))[0]
    assert [m.weight.shape for m in twin.modules() if isinstance(m, nn.Conv2d)] == [
        (32, 8, 3, 3), (4, 32, 1, 1), (32, 4, 1, 1), (8, 32, 1, 1),
    ]  # fmt: skip
    x = torch.randn(2, 8, 6, 6)
    twin.eval()
    inner = twin.squeeze_excite(twin.activation(twin.norm(twin.conv(x))))
    torch.testing.assert_close(twin(x), twin.project_norm(twin.project(inner)) + x)


def test_a_lightweight_convolution_becomes_a_dense_one():
    twin = dense_twin_(nn.Sequential(LightweightConv1d(8, 5, heads=2)))[0]
    assert twin(torch.randn(1, 8, 11)).shape == (1, 8, 11)
    assert twin.weight.shape == (8, 8, 5)


@pytest.mark.parametrize("options", [{"padding": "same_tf", "stride": 2}, {"order": "pointwise_first"}])
def test_what_has_no_twin_is_refused(options):
    with pytest.raises(ValueError, match="no dense twin for"):
        dense_twin_(nn.Sequential(DepthwiseSeparableConv2d(8, 8, **options)))
