"""Operations and modules in place: whoever else has the tensor sees it change, and nobody else's numbers do."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate import _training
from tests.accelerate.toys import check_inference, check_step, conv_norm, distance, program_runs, randomise


@pytest.fixture(name="x")
def _x():
    return torch.randn(2, 3, 20, 24)


@pytest.fixture(autouse=True)
def _stages_everywhere(monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)


def _check(model, plain, x):
    """The first time that a shape is seen, and once more."""
    with torch.no_grad():
        for _ in range(2):
            assert distance(model(x), plain(x)) < 1e-5


def test_steps_keep_their_order(x):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3))
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            first = self.depthwise(x)
            shortcut = first + 0
            second = self.depthwise(shortcut)
            self.relu(shortcut)
            second += shortcut
            third = self.depthwise(second)
            second += third
            second *= 2
            return second + third, shortcut

    net = randomise(InPlace()).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    kept = x.clone()
    _check(net, plain, x)
    assert torch.equal(kept, x)
    assert program_runs(net)


def test_steps_keep_their_order_in_training(x):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3))
            self.pointwise = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.depthwise(x)
            y = self.depthwise(x)
            y *= 2
            y += 1
            return self.pointwise(y) + y

    net = randomise(InPlace())
    dwsep.accelerate_(net)
    check_step(net, x)


@pytest.mark.parametrize("operation", ["iadd", "isub", "imul", "itruediv", "ipow"])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_operations_in_place_write_into_what_others_have(operation, seen, training, x):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(*conv_norm(3, 8, 3, activation=nn.Sigmoid()))
            self.body = nn.Sequential(*conv_norm(8, 8, 3, groups=8, activation=nn.Sigmoid()))

        def forward(self, x):
            x = self.stem(x) + 1
            before = x
            y = self.body(x) + 0.5
            x = getattr(operator, operation)(x, y)
            return self.body(x) + (before if seen else 0)

    net = randomise(InPlace()).train(training)
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    _check(net, plain, x)


def test_an_input_that_is_written_into(x):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*conv_norm(3, 3, 3, groups=3))

        def forward(self, x):
            y = self.body(x)
            x += y
            return self.body(x)

    net = randomise(InPlace()).eval()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    for _ in range(2):
        with torch.no_grad():
            assert distance(net(x.clone()), plain(x.clone())) < 1e-5


class _Rectified(nn.Module):
    """An activation in place of what a gate was made of before, or of what is taken once more behind it."""

    def __init__(self, takes, norm, depthwise, activation):
        super().__init__()
        self.takes = takes
        self.first = nn.Conv2d(3, 12, 3, padding=1, groups=3) if depthwise else nn.Conv2d(3, 12, 1)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.activation = activation(inplace=True)
        self.gate, self.end = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def forward(self, x):
        return self.takes(self, self.norm(self.first(x)))


def _means(x):
    return x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    "takes",
    [
        lambda net, y: (net.gate(_means(y)).sigmoid(), net.end(net.activation(y))),
        lambda net, y: (net.gate(_means(y)).sigmoid(), net.end(net.activation(y)), y),
        lambda net, y: net.gate(_means(y)).sigmoid() * net.end(net.activation(y)),
        lambda net, y: net.gate(_means(y)).sigmoid() * net.activation(y) + net.end(y),
        lambda net, y: (y + 1, net.end(net.activation(y))),
        lambda net, y: (y.flatten(2), net.end(net.activation(y))),
        lambda net, y: (net.activation(y[:, :5]), net.end(y)),
        lambda net, y: (net.activation(nn.functional.dropout(y, 0.5, False)), net.end(y)),
        lambda net, y: (net.activation(nn.Identity()(y)), net.end(y)),
        lambda net, y: (net.activation(y.flatten(2)), net.end(y)),
    ],
    ids=[
        *("means", "means and itself", "gate", "gated", "sum", "view", "of channels", "of a dropout"),
        *("of what passes on", "of a view"),
    ],
)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_activations_of_what_others_take(takes, norm, depthwise, activation, x):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _Rectified(takes, norm, depthwise, activation)

        def forward(self, x):
            out = self.net(x)
            return out if isinstance(out, torch.Tensor) else torch.cat([part.flatten(1) for part in out], 1)

    net = randomise(Sum())
    dwsep.accelerate_(net)
    check_step(net, x)
    check_inference(net.eval(), x)
