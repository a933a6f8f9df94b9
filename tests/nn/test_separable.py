"""Separable layers against the same computation written out with torch's own modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import dwsep
from dwsep.ops._layout import is_channels_last
from tests import problems

LAYERS = {
    1: dwsep.nn.DepthwiseSeparableConv1d,
    2: dwsep.nn.DepthwiseSeparableConv2d,
    3: dwsep.nn.DepthwiseSeparableConv3d,
}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = (9, 8, 7)


def written_out(layer: nn.Module, x: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """The layer with torch's own convolutions in float64, from its submodules and options."""
    conv = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}[x.dim()]
    depthwise, pointwise = layer.depthwise, layer.pointwise

    def spatial(t):
        return conv(
            t, depthwise.weight, depthwise.bias, depthwise.stride, padding, depthwise.dilation, groups=t.shape[1]
        )

    def mix(t):
        return conv(t, pointwise.weight, pointwise.bias)

    first, second = (spatial, mix) if layer.order == "depthwise_first" else (mix, spatial)
    inner = first(x)
    for module in (layer.inner_norm, layer.inner_activation):
        inner = inner if module is None else module(inner)
    out = second(inner)
    if layer.residual == "depthwise":
        out = out + inner
    for module in (layer.norm, layer.activation):
        out = out if module is None else module(out)
    return out + x if layer.residual == "input" else out


@pytest.mark.parametrize("axes", LAYERS)
@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("activation", [None, "relu6", "silu", nn.LeakyReLU])
@pytest.mark.parametrize("training", [True, False])
def test_forward_matches_the_submodules_one_by_one(axes, order, norm, activation, training):
    layer = LAYERS[axes](
        6, 12, 3, 2, dilation=2, depth_multiplier=2, order=order, norm=norm, activation=activation, inner_norm=norm,
        inner_activation=activation,
    )  # fmt: skip
    _randomise_norms(layer)
    layer.train(training)
    x = torch.randn(3, 6, *SIZES[:axes])
    expected = written_out(copy.deepcopy(layer).double(), x.double(), [2] * axes)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        expected = written_out(copy.deepcopy(layer).double(), x.double(), [2] * axes)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def _randomise_norms(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("residual", ["input", "depthwise"])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_residuals(order, residual, norm):
    layer = dwsep.nn.DepthwiseSeparableConv2d(
        8, 8, 3, order=order, residual=residual, norm=norm, inner_norm=norm, activation="relu", inner_activation="silu"
    )
    _randomise_norms(layer)
    layer.eval()
    x = torch.randn(2, 8, 6, 6)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            expected = written_out(copy.deepcopy(layer).double(), x.double(), [1, 1])
            torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_channels, out_channels", [(32, 64), (64, 32), (7, 13), (1, 5), (5, 1)])
def test_any_channels_and_every_kernel_sees_one_channel(in_channels, out_channels):
    layer = dwsep.nn.DepthwiseSeparableConv2d(in_channels, out_channels, 3, 1, 1)
    assert layer.depthwise.weight.shape == (in_channels, 1, 3, 3)
    assert layer.pointwise.weight.shape == (out_channels, in_channels, 1, 1)
    x = torch.randn(1, in_channels, 8, 8)
    changed = x.clone()
    changed[:, 0] += 1
    # Truly depthwise: a change of one input channel reaches one depthwise output only.
    different = (layer.depthwise(x) != layer.depthwise(changed)).flatten(2).any(-1)[0]
    assert different.tolist() == [True] + [False] * (in_channels - 1)
    assert layer(x).shape == (1, out_channels, 8, 8)


@pytest.mark.parametrize("axes", LAYERS)
@pytest.mark.parametrize("norm", [None, "batch"])
def test_unbatched_input_equals_a_batch_of_one(axes, norm):
    layer = LAYERS[axes](4, 6, norm=norm, inner_norm=norm).eval()
    x = torch.randn(4, *SIZES[:axes])
    assert torch.equal(layer(x), layer(x.unsqueeze(0)).squeeze(0))


@pytest.mark.parametrize("axes, last", [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_memory_format_is_kept(axes, last):
    layer = LAYERS[axes](4, 6, inner_activation="relu")
    x = torch.randn(2, 4, *SIZES[:axes])
    assert layer(x).is_contiguous()
    assert layer(x.to(memory_format=last)).is_contiguous(memory_format=last)
    with torch.no_grad():
        assert layer(x.to(memory_format=last)).is_contiguous(memory_format=last)


@pytest.mark.parametrize("axes", LAYERS)
def test_memory_format_is_kept_by_the_reference(axes):
    x = torch.randn(2, 4, *SIZES[:axes])
    depthwise, pointwise = torch.randn(4, 1, *(3,) * axes), torch.randn(6, 4, *(1,) * axes)
    functions = dwsep.functional
    for given in (x, problems.last(x)):
        out = getattr(functions, f"depthwise_conv{axes}d")(given, depthwise, backend="reference")
        assert is_channels_last(out) == is_channels_last(given)
        separable = getattr(functions, f"depthwise_separable_conv{axes}d")
        assert is_channels_last(separable(given, depthwise, pointwise, backend="reference")) == is_channels_last(given)


@pytest.mark.parametrize("view", ["sliced", "transposed", "expanded"])
def test_non_contiguous_input(view):
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 6)
    x = {
        "sliced": torch.randn(2, 8, 6, 12)[:, ::2, :, 1::2],
        "transposed": torch.randn(2, 4, 6, 6).transpose(2, 3),
        "expanded": torch.randn(1, 4, 1, 6).expand(2, 4, 6, 6),
    }[view]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_empty_batch_gives_an_empty_batch():
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 6, stride=2)
    out = layer(torch.empty(0, 4, 8, 8))
    assert out.shape == (0, 6, 4, 4)
    out.sum().backward()
    assert layer.depthwise.weight.grad.abs().sum() == 0


def test_gradients_match_float64():
    for activation in (None, "relu", "hardswish"):
        layer = dwsep.nn.DepthwiseSeparableConv2d(8, 12, 3, 2, dilation=2, inner_activation=activation)
        twin = copy.deepcopy(layer).double()
        x = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
        y = x.detach().double().requires_grad_()
        layer(x).square().sum().backward()
        twin(y).square().sum().backward()
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(layer.parameters(), twin.parameters()):
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)


def test_factors_are_initialised_by_their_own_fan_in():
    layer = dwsep.nn.DepthwiseSeparableConv2d(1024, 512, 5)
    assert layer.depthwise.weight.abs().max() <= 1 / 5
    assert layer.pointwise.weight.abs().max() <= 1 / 32
    assert abs(layer.pointwise.weight.std().item() - 1 / 32 / 3**0.5) < 1e-3
    before = layer.pointwise.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.pointwise.weight)


def test_repr_lists_the_submodules_in_the_order_they_run():
    layer = dwsep.nn.DepthwiseSeparableConv2d(
        8, 16, 3, 2, order="pointwise_first", inner_norm="batch", inner_activation="relu", bias=False
    )
    lines = repr(layer).splitlines()
    assert lines[1] == "  8, 16, kernel_size=3, stride=2, order='pointwise_first'"
    names = [line.split(":")[0].strip() for line in lines[2:-1]]
    assert names == ["(pointwise)", "(inner_norm)", "(inner_activation)", "(depthwise)"]


def test_state_dict_keys_are_the_submodules_own():
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 6, norm="batch", activation="relu")
    keys = {key.rsplit(".", 1)[0] for key in layer.state_dict()}
    assert keys == {"depthwise", "pointwise", "norm"}


def test_norm_may_be_a_callable_or_a_module():
    layer = dwsep.nn.DepthwiseSeparableConv2d(
        4, 8, norm=lambda channels: nn.GroupNorm(2, channels), inner_norm=nn.InstanceNorm2d(4)
    )
    assert isinstance(layer.norm, nn.GroupNorm)
    assert layer(torch.randn(2, 4, 6, 6)).shape == (2, 8, 6, 6)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_deepcopy_and_pickle_round_trip(norm):
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8, norm=norm, inner_activation="relu").eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


def test_gradients_reach_every_parameter_in_training_and_evaluation():
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8, norm="batch", inner_norm="batch", activation="relu")
    for training in (True, False):
        layer.train(training)
        layer.zero_grad()
        layer(torch.randn(4, 4, 6, 6)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())


def test_meta_device_gives_shapes_without_memory():
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8, stride=2, norm="batch", device="meta")
    out = layer(torch.empty(2, 4, 64, 64, device="meta"))
    assert out.shape == (2, 8, 32, 32)
    assert out.device.type == "meta"
