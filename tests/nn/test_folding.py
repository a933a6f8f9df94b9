"""When the fused operator runs, and that folded weights follow every change of what is behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep
from dwsep.nn import _folding


@pytest.fixture
def layer():
    made = dwsep.nn.DepthwiseSeparableConv2d(
        4, 8, norm="batch", activation="relu", inner_norm="batch", inner_activation="relu"
    )
    for norm in (made.norm, made.inner_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return made.eval()


X = torch.randn(2, 4, 6, 6)


def both(layer):
    """The layer's result without gradients, which folds, and that of its submodules."""
    with torch.no_grad():
        return layer(X), layer._composed(X)


def test_folds_in_evaluation_without_gradients_only(layer):
    def can(which):
        return (_folding.fused_arguments(which) is not None, which._plan.current(which) is not None)

    with torch.no_grad():
        assert can(layer) == (True, True)
        assert can(layer.train()) == (False, False)
    assert can(layer.eval()) == (False, False)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert can(layer) == (True, True)


def test_weights_are_prepared_once(layer):
    with torch.no_grad():
        layer(X)
        first = layer._plan.plan
        layer(X)
        assert layer._plan.plan is first


def test_input_which_wants_a_gradient_gets_it_from_frozen_weights(layer):
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = X.clone().requires_grad_()
    layer(x).sum().backward()
    y = X.clone().requires_grad_()
    layer._composed(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_plan_checks_every_new_input(layer):
    strict = dwsep.nn.DepthwiseSeparableConv2d(4, 4, padding=0, residual="depthwise").eval()
    with torch.no_grad():
        strict(X)
        for bad in (X[..., :2], X[:, :3], X.double(), X[0, 0]):
            with pytest.raises(dwsep.ArgumentError):
                strict(bad)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (m.depthwise.weight.data.mul_(2), m.eval()),
        lambda m: m.pointwise.weight.mul_(2),
        lambda m: m.pointwise.bias.add_(1),
        lambda m: m.norm.running_mean.add_(1),
        lambda m: m.inner_norm.running_var.mul_(3),
        lambda m: m.norm.weight.mul_(-1),
        lambda m: setattr(m.norm, "eps", 0.5),
        lambda m: setattr(m, "norm", nn.BatchNorm2d(8).eval()),
        lambda m: setattr(m, "norm", None),
        lambda m: setattr(m.pointwise, "weight", nn.Parameter(torch.ones(8, 4, 1, 1))),
        lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
        lambda m: setattr(m, "activation", nn.SiLU()),
        lambda m: (m.train(), m(X), m.eval()),
        lambda m: m.norm.reset_running_stats(),
    ],
)
def test_folded_weights_follow_changes(layer, change):
    before, _ = both(layer)
    with torch.no_grad():
        change(layer)
    after, expected = both(layer)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after)


def test_double_and_half_move_the_folded_weights(layer):
    both(layer)
    with torch.no_grad():
        out = layer.double()(X.double())
        torch.testing.assert_close(out, layer._composed(X.double()))
        assert layer.bfloat16()(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["depthwise", "inner_norm", "inner_activation", "pointwise", "norm", "activation"])
def test_hooks_on_submodules_see_them_run(layer, name):
    calls = []
    handle = layer.get_submodule(name).register_forward_hook(lambda *arguments: calls.append(name))
    out, expected = both(layer)
    assert calls == [name, name]
    torch.testing.assert_close(out, expected)
    handle.remove()


def test_parametrised_weight_is_recomputed(layer):
    nn.utils.parametrizations.weight_norm(layer.pointwise)
    out, expected = both(layer)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        layer.pointwise.parametrizations.weight.original0.mul_(2)
    after, expected = both(layer)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, after)


def test_inference_tensors_fold_without_a_version_counter():
    with torch.inference_mode():
        layer = dwsep.nn.DepthwiseSeparableConv2d(4, 8, norm="batch", inner_activation="relu").eval()
        torch.testing.assert_close(layer(X), layer._composed(X), rtol=1e-5, atol=1e-5)
