"""Parameter groups and initialisers by factor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import dwsep
from dwsep.nn._factors import INITIALISERS


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        dwsep.nn.DepthwiseSeparableConv2d(8, 16, norm="batch"),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 4, 1),
        dwsep.nn.DepthwiseSeparableConvTranspose2d(4, 4, 2, 2),
        nn.Flatten(),
        nn.LazyLinear(10),
    )


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def test_parameter_groups_put_no_decay_on_depthwise_kernels():
    model = network()
    model(torch.randn(1, 3, 12, 12))
    groups = dwsep.nn.parameter_groups(model, weight_decay=0.1)
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "depthwise": 0.0, "pointwise": 0.1, "norm_and_bias": 0.0, "other": 0.1,
    }  # fmt: skip
    found = names_by_group(model, groups)
    assert found["depthwise"] == {"1.depthwise.weight", "2.weight", "4.depthwise.weight"}
    assert found["pointwise"] == {"1.pointwise.weight", "3.weight", "4.pointwise.weight"}
    assert found["other"] == {"0.weight", "6.weight"}
    everything = [parameter for group in groups for parameter in group["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(model.parameters()))


def test_parameter_groups_leave_a_depthwise_kernel_alone_in_an_optimizer():
    model = nn.Sequential(dwsep.nn.DepthwiseSeparableConv2d(4, 4))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(dwsep.nn.parameter_groups(model, weight_decay=0.5), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model[0].depthwise.weight, before["0.depthwise.weight"])
    torch.testing.assert_close(model[0].pointwise.weight, before["0.pointwise.weight"] / 2)


def test_parameter_groups_decays_per_factor_and_shared_and_frozen_parameters():
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8, bias=False)
    model = nn.Sequential(layer, layer)
    groups = dwsep.nn.parameter_groups(model, weight_decay=0.1, depthwise=0.2, pointwise=0.3)
    assert [(g["name"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("depthwise", 0.2, 1), ("pointwise", 0.3, 1),
    ]  # fmt: skip
    layer.depthwise.weight.requires_grad_(False)
    assert [g["name"] for g in dwsep.nn.parameter_groups(model, weight_decay=0.1)] == ["pointwise"]


@pytest.mark.parametrize("parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parameter_groups_see_through_parametrisations(parametrise):
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8)
    parametrise(layer.depthwise)
    parametrise(layer.pointwise)
    found = names_by_group(layer, dwsep.nn.parameter_groups(layer, weight_decay=0.1))
    assert found["norm_and_bias"] == {"depthwise.bias", "pointwise.bias"}
    assert all("depthwise.parametrizations.weight" in name for name in found["depthwise"])
    assert all("pointwise.parametrizations.weight" in name for name in found["pointwise"])


def test_parameter_groups_refuse():
    with pytest.raises(dwsep.ArgumentError, match="weight_decay must be finite and at least 0, got -1"):
        dwsep.nn.parameter_groups(network(), weight_decay=-1)
    with pytest.raises(TypeError, match="depthwise must be a number"):
        dwsep.nn.parameter_groups(network(), weight_decay=0, depthwise="none")
    with pytest.raises(TypeError, match="model must be"):
        dwsep.nn.parameter_groups([], weight_decay=0)


DEVIATIONS = {  # of (1024, 1, 3, 3) depthwise and (1024, 512, 1, 1) pointwise kernels
    "uniform": (1 / 3 / math.sqrt(3), 1 / math.sqrt(512 * 3)),
    "he": (math.sqrt(2 / 9), math.sqrt(2 / 1024)),
    "xavier": (math.sqrt(2 / (9 + 9 * 1024)), math.sqrt(2 / (512 + 1024))),
    "deeplab": (0.33 * 0.8796, 0.06 * 0.8796),  # a normal's deviation, cut off at two
}


@pytest.mark.parametrize("rule", DEVIATIONS)
def test_init_factors_draws_each_factor_by_its_own_rule(rule):
    layer = dwsep.nn.DepthwiseSeparableConv2d(512, 1024, depth_multiplier=2)
    point = nn.Conv2d(512, 1024, 1)
    model = nn.Sequential(layer.depthwise, point)
    assert dwsep.nn.init_factors_(model, depthwise=rule, pointwise=rule, bias=0.5) == 2
    for parameter, expected in zip((layer.depthwise.weight, point.weight), DEVIATIONS[rule], strict=True):
        assert parameter.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(parameter.mean().item()) < 0.05 * expected
    assert layer.depthwise.bias.eq(0.5).all()
    assert point.bias.eq(0.5).all()


def test_init_factors_orthogonal_and_functions():
    layer = dwsep.nn.DepthwiseSeparableConv1d(6, 12, 5)
    dwsep.nn.init_factors_(layer, pointwise="orthogonal", depthwise=nn.init.zeros_)
    columns = layer.pointwise.weight.flatten(1)
    torch.testing.assert_close(columns.T @ columns, torch.eye(6), rtol=1e-5, atol=1e-5)
    assert not layer.depthwise.weight.any()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_init_factors_identity_changes_nothing(axes):
    layer = getattr(dwsep.nn, f"DepthwiseSeparableConv{axes}d")(4, 4)
    dwsep.nn.init_factors_(layer, depthwise="identity", pointwise="identity", bias=0.0)
    x = torch.randn(2, 4, *(5, 6, 7)[:axes])
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("rule", INITIALISERS)
def test_init_factors_through_weight_norm_and_transposed_kernels(rule):
    layer = dwsep.nn.DepthwiseSeparableConv2d(4, 4)
    transposed = dwsep.nn.DepthwiseSeparableConvTranspose2d(4, 4, depth_multiplier=3)
    parametrizations.weight_norm(layer.pointwise)
    torch.manual_seed(1)
    assert dwsep.nn.init_factors_(nn.Sequential(layer, transposed), depthwise=rule, pointwise=rule) == 4
    torch.manual_seed(1)
    plain = dwsep.nn.DepthwiseSeparableConv2d(4, 4)
    torch.manual_seed(1)
    dwsep.nn.init_factors_(plain, depthwise=rule, pointwise=rule)
    torch.testing.assert_close(layer.pointwise.weight, plain.pointwise.weight)
    assert transposed.depthwise.weight.shape == (4, 3, 3, 3)


def test_init_factors_refuses():
    with pytest.raises(dwsep.ArgumentError, match="depthwise: unknown name 'glorot'; valid names are 'uniform'"):
        dwsep.nn.init_factors_(network(), depthwise="glorot")
    with pytest.raises(TypeError, match="pointwise must be None, a name or a function"):
        dwsep.nn.init_factors_(network(), pointwise=3)
