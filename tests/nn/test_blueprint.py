"""Blueprint separable convolution against the paper's formulas and the same chain in torch's modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep

Blueprint = dwsep.nn.BlueprintSeparableConv2d


@pytest.mark.parametrize("variant", ["U", "S"])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_matches_the_chain_of_torch_modules(variant, stride, dilation):
    layer = Blueprint(8, 12, 3, stride, dilation=dilation, variant=variant, inner_norm="batch", norm="batch",
                      activation="relu")  # fmt: skip
    conv = nn.Conv2d(12, 12, 3, stride, dilation, dilation, groups=12)
    conv.load_state_dict(layer.depthwise.state_dict())
    x = torch.randn(2, 8, 9, 9)
    y = layer.reduce_norm(layer.reduce(x)) if variant == "S" else x
    expected = layer.norm(conv(layer.inner_norm(layer.pointwise(y)))).relu()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer.pointwise.bias is None


def test_every_filter_is_a_blueprint_scaled_per_input_channel():
    layer = Blueprint(5, 7, 3, bias=False)
    dense = layer.pointwise.weight * layer.depthwise.weight  # (7, 5, 1, 1) * (7, 1, 3, 3)
    x = torch.randn(2, 5, 6, 6)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, dense, padding=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_channels, expected", [(3, 3), (8, 4), (16, 4), (30, 8), (64, 16)])
def test_subspace_keeps_a_share_of_the_channels(in_channels, expected):
    assert Blueprint(in_channels, 8, variant="S").subspace_channels == expected
    assert Blueprint(in_channels, 8, variant="S").reduce.weight.shape == (expected, in_channels, 1, 1)


def test_orthogonality_loss_is_zero_for_orthonormal_rows_alone():
    layer = Blueprint(16, 8, variant="S")
    rows = layer.reduce.weight.flatten(1).double()
    expected = ((rows @ rows.T - torch.eye(4)) ** 2).sum().sqrt()
    torch.testing.assert_close(layer.orthogonality_loss().double(), expected, rtol=1e-5, atol=1e-6)
    nn.init.orthogonal_(layer.reduce.weight)
    assert layer.orthogonality_loss() < 1e-5
    assert Blueprint(16, 8).orthogonality_loss() == 0


def test_orthogonality_loss_of_a_network_falls_under_descent():
    model = nn.Sequential(Blueprint(16, 32, variant="S"), nn.ReLU(), Blueprint(32, 8, variant="S"), Blueprint(8, 8))
    each = [model[0].orthogonality_loss(), model[2].orthogonality_loss()]
    before = dwsep.nn.orthogonality_loss(model)
    torch.testing.assert_close(before, sum(each))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        dwsep.nn.orthogonality_loss(model).backward()
        optimizer.step()
    assert dwsep.nn.orthogonality_loss(model) < 0.05 * before
    assert dwsep.nn.orthogonality_loss(nn.Linear(2, 2)) == 0


def test_refuses():
    with pytest.raises(dwsep.ArgumentError, match="variant: unknown name 'T'; valid names are 'U', 'S'"):
        Blueprint(4, 4, variant="T")
    with pytest.raises(dwsep.ArgumentError, match="subspace must be above 0 and at most 1, got 0"):
        Blueprint(4, 4, subspace=0)
    with pytest.raises(dwsep.ArgumentError, match="inner_norm must be a name or a callable for variant 'S'"):
        Blueprint(4, 4, variant="S", inner_norm=nn.BatchNorm2d(4))
