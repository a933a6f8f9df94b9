"""Lazy layers become the layers whose names they carry."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

import dwsep

LAZY = {name: getattr(dwsep.nn, name) for name in dwsep.nn.__all__ if name.startswith("Lazy")}
OPTIONS = {
    "Depthwise": {"depth_multiplier": 2, "activation": "relu"},
    "DepthwiseSeparable": {"norm": "batch", "inner_norm": lambda c: nn.GroupNorm(1, c), "activation": "relu"},
}


def make(name, **options):
    separable = "Separable" in name
    options = {**OPTIONS["DepthwiseSeparable" if separable else "Depthwise"], **options}
    return LAZY[name](*((12,) if separable else ()), 3, **options)


@pytest.mark.parametrize("name", LAZY)
def test_becomes_the_layer_at_its_first_input(name):
    layer = make(name)
    before = list(layer.parameters())
    assert all(isinstance(parameter, UninitializedParameter) for parameter in before)
    assert getattr(layer, "depthwise", layer).stride == (1,) * layer.ndim
    x = torch.randn(2, 5, *(6, 7, 8)[: layer.ndim])
    out = layer(x)
    assert type(layer) is getattr(dwsep.nn, name.removeprefix("Lazy"))
    assert layer.in_channels == 5
    # The parameters handed out before, as to a module that shares them, are the layer's.
    assert all(any(old is new for new in layer.parameters()) for old in before)
    assert not any(isinstance(parameter, UninitializedParameter) for parameter in layer.parameters())
    twin = type(layer)(5, *((12,) if "Separable" in name else ()), 3, **_options(name))
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), out)


def _options(name):
    return OPTIONS["DepthwiseSeparable" if "Separable" in name else "Depthwise"]


@pytest.mark.parametrize("name", LAZY)
def test_loads_a_state_before_any_input(name):
    source, layer = make(name), make(name)
    x = torch.randn(1, 5, *(6, 7, 8)[: source.ndim])
    source(x)
    layer.load_state_dict(source.state_dict())
    assert layer.in_channels == 5
    assert torch.equal(layer.eval()(x), source.eval()(x))
    assert not layer._load_state_dict_pre_hooks


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("kind", ["DepthwiseSeparableConv2d", "DepthwiseSeparableConvTranspose2d"])
def test_separable_layer_loads_either_order(kind, order):
    options = {"order": order, "depth_multiplier": 2, "norm": None, "inner_norm": "batch"}
    source = getattr(dwsep.nn, kind)(5, 12, 3, activation="relu", **options)
    nested = nn.Sequential(make(f"Lazy{kind}", **options))
    nested.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    x = torch.randn(2, 5, 6, 6)
    assert torch.equal(nested(x), source(x))


def test_copies_pickles_moves_and_hooks_before_the_first_input():
    layer = LAZY["LazyDepthwiseSeparableConv2d"](12, 3, norm="batch").double()
    calls = []
    layer.register_forward_hook(lambda *arguments: calls.append(arguments[0].in_channels))
    copied = copy.deepcopy(layer)
    pickled = pickle.loads(pickle.dumps(LAZY["LazyDepthwiseSeparableConv2d"](12, 3, norm="batch")))
    for one in (layer, copied, pickled.double()):  # torch pickles no dtype of an uninitialised parameter
        assert one.eval()(torch.randn(1, 5, 6, 6, dtype=torch.float64)).dtype == torch.float64
        assert not one.norm.training
    assert calls == [5, 5]


@pytest.mark.parametrize("residual", ["input", "depthwise"])
def test_residuals_are_checked_at_the_first_input(residual):
    layer = make("LazyDepthwiseSeparableConv2d", residual=residual)
    assert layer(torch.randn(1, 12, 6, 6)).shape == (1, 12, 6, 6)
    with pytest.raises(dwsep.ArgumentError, match=f"residual='{residual}' needs"):
        make("LazyDepthwiseSeparableConv2d", residual=residual)(torch.randn(1, 5, 6, 6))


def test_faults_which_no_channels_cure_are_found_at_once():
    with pytest.raises(dwsep.ArgumentError, match="stride must be between"):
        LAZY["LazyDepthwiseSeparableConv2d"](12, 3, stride=0)
    with pytest.raises(TypeError, match="kernel_size"):
        LAZY["LazyDepthwiseConv2d"]("three")
    with pytest.raises(dwsep.ArgumentError, match="output_padding must be smaller"):
        LAZY["LazyDepthwiseConvTranspose2d"](3, output_padding=1)
    with pytest.raises(dwsep.ArgumentError, match="x must have 4 dimensions"):
        LAZY["LazyDepthwiseConv2d"](3)(torch.ones(4, 4))
