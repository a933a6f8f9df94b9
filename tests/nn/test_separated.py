"""Modules that stand for dense convolutions, and networks that know which of theirs do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import dwsep
from dwsep.nn import _separated

STRUCTURE = {
    "0": {"order": "depthwise_first", "rank": 2, "bias": True},
    "2.0": {"order": "pointwise_first", "rank": 3, "bias": False},
}


def dense():
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(6, 8, 3, bias=False)))


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    "module, reason",
    [
        (nn.Conv2d(4, 8, 3), None),
        (nn.Conv2d(4, 8, 1), None),
        (nn.Linear(4, 8), None),
        (nn.Conv2d(4, 8, 3, groups=2), "has 2 groups"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise already"),
        (nn.ConvTranspose2d(4, 8, 3), "a transposed convolution"),
        (Own(4, 8, 3), "its convolution is not torch's plain one"),
        (nn.LazyConv2d(8, 3), "its convolution is not torch's plain one"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), "its convolution is not torch's plain one"),
        (nn.Conv2d(4, 8, 3, dtype=torch.complex64), "its weight is of torch.complex64"),
    ],
)
def test_why_not(module, reason):
    assert _separated.why_not(module) == reason


def test_restructured_networks_know_their_structure():
    net = dense()
    _separated.restructure_(net, STRUCTURE)
    assert isinstance(net[0], dwsep.nn.DepthwiseSeparableConv2d)
    assert isinstance(net[2][0], _separated.PointwiseFirstSeparable)
    for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.double()):
        assert _separated.structure_of(other) == STRUCTURE
    again = dense()
    _separated.restructure_(again, _separated.structure_of(net))
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in net.state_dict().items()}
    dwsep.merge_(net)
    assert _separated.structure_of(net) == {}
    assert type(net[2][0]) is nn.Conv2d
    assert _separated.structure_of(dense()) == {}


def test_a_network_of_our_own_layers_has_no_structure():
    assert _separated.structure_of(nn.Sequential(dwsep.nn.DepthwiseSeparableConv2d(4, 8))) == {}


def test_restructure_refuses_what_is_not_there():
    net = dense()
    for name in ("1", "7"):
        with pytest.raises(ValueError, match=f"structure: the model has no dense convolution '{name}'"):
            _separated.restructure_(net, {**STRUCTURE, name: STRUCTURE["0"]})
    assert type(net[0]) is nn.Conv2d  # looked at before anything changes
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got 3"):
        _separated.restructure_(3, STRUCTURE)


def test_an_empty_layer_is_on_the_device_of_its_convolution():
    meta = _separated.empty_separable(nn.Conv2d(6, 8, 3, device="meta"), "pointwise_first", 2, None)
    assert {p.device.type for p in meta.parameters()} == {"meta"}


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_sum_of_ranks(ndim):
    bias = nn.Parameter(torch.randn(2))
    x = torch.randn(3, 6, *(4, 5, 2)[:ndim])
    wanted = torch.stack([x[:, :3].sum(1) + bias[0], x[:, 3:].sum(1) + bias[1]], 1)
    layer = _separated.SumOfRanks(3, ndim, bias)
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer(x[0]), wanted[0])
