"""Heads in segments: what may run natively behind the last pooling, and what must not break the segment before it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate import _segments
from dwsep.ops.training_program import COLUMNS, Kind
from tests.accelerate.toys import Block, check_step, conv_norm, randomise

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


class Headed(nn.Module):
    """A pointwise stage and a depthwise one, then a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(3, 8, activation=nn.SiLU()), *conv_norm(8, 8, 3, groups=8))
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture(name="lowered")
def _lowered(monkeypatch):
    """The segments which have run natively, their kinds of steps."""
    seen: list[list[Kind]] = []
    plain = _segments.Lowered.run

    def run(self, inputs, rounds):
        seen.append([Kind(kind) for kind in self.steps[:: len(COLUMNS)]])
        return plain(self, inputs, rounds)

    monkeypatch.setattr(_segments.Lowered, "run", run)
    return seen


@pytest.mark.parametrize("wants_x", [False, True])
@pytest.mark.parametrize("conv", [(3, 3, 2, 1), (3, 7, 1, 3), (1, 4, 4, 0)])
def test_a_stem_is_a_stage(lowered, conv, wants_x):
    channels, size, stride, padding = conv
    stem = nn.Conv2d(channels, 8, size, stride, padding, bias=channels == 1)
    net = nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU6(), *conv_norm(8, 8, 3, groups=8))
    dwsep.accelerate_(randomise(net))
    check_step(net, torch.randn(2, channels, 20, 24, requires_grad=wants_x))
    assert {seen.count(Kind.CONV) for seen in lowered} == {2}


@pytest.mark.parametrize(("channels", "convolutions"), [(8, 3), (200, 1)])
def test_a_dense_convolution_of_few_channels_is_a_stage(lowered, channels, convolutions):
    net = nn.Sequential(
        *conv_norm(3, channels, activation=nn.SiLU()), *conv_norm(channels, 8, 3), *conv_norm(8, 8, 3, groups=8)
    )
    dwsep.accelerate_(randomise(net))
    check_step(net, torch.randn(2, 3, 20, 24))
    assert {seen.count(Kind.CONV) for seen in lowered} == {convolutions}


@pytest.mark.parametrize("strides", [2, 5], ids=["pixels", "a pixel"])
def test_gates_of_images_of_any_size(lowered, strides):
    # What 32 pixels have become behind five strides of 2: the gate is as large as what it gates.
    torch.manual_seed(0)
    net = nn.Sequential(
        *(Block(8 if i else 3, 8, stride=2, activation=nn.Hardswish, gate=True) for i in range(strides))
    )
    dwsep.accelerate_(randomise(net))
    check_step(net, torch.randn(8, 3, 32, 32))
    assert [kinds.count(Kind.GATED) for kinds in lowered] == [strides]


def _pool(size: int = 1) -> nn.Module:
    return nn.AdaptiveAvgPool2d(size)


@pytest.mark.parametrize(
    ("head", "convolutions"),
    [
        (lambda: [_pool(), nn.Flatten(), nn.Linear(8, 5)], 3),
        (lambda: [_pool(), nn.Flatten(), nn.Linear(8, 6, bias=False), nn.Linear(6, 5)], 4),
        (lambda: [_pool(), nn.Conv2d(8, 12, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(12, 5)], 4),
        (lambda: [_pool(), nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)], 3),
        (lambda: [_pool(2), nn.Flatten(), nn.Linear(32, 5)], 2),
        (lambda: [nn.Flatten(), nn.Linear(8 * 20 * 24, 5)], 2),
    ],
    ids=["linear", "two linears", "convolution and linear", "activation between", "larger pool", "no pool"],
)
def test_head(head, convolutions, lowered):
    torch.manual_seed(0)
    net = randomise(Headed(nn.Sequential(*head())))
    dwsep.accelerate_(net)
    check_step(net, torch.randn(4, 3, 20, 24))
    assert [kinds.count(Kind.CONV) for kinds in lowered] == [convolutions]


def test_another_head_is_seen(lowered):
    torch.manual_seed(1)
    net = randomise(Headed(nn.Sequential(_pool(), nn.Flatten(), nn.Linear(8, 5))))
    dwsep.accelerate_(net)
    x = torch.randn(4, 3, 20, 24)
    check_step(net, x)
    net.head[2] = nn.Linear(8, 9)
    check_step(net, x)
    net.head[2].weight = nn.Parameter(torch.randn(11, 8))
    net.head[2].bias = None
    net.head[2].out_features = 11
    check_step(net, x)
    assert net(x).shape == (4, 11)
    assert all(kinds.count(Kind.CONV) == 3 for kinds in lowered)


def test_a_head_of_another_dtype_runs_as_it_did():
    class Cast(nn.Module):
        def forward(self, x):
            return x.double()

    net = randomise(Headed(nn.Sequential(_pool(), nn.Flatten(), Cast(), nn.Linear(8, 5).double())))
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(4, 3, 20, 24)
    torch.testing.assert_close(net.train()(x), plain.train()(x), rtol=1e-5, atol=1e-6)


def test_a_hook_on_the_head_is_called():
    net = randomise(Headed(nn.Sequential(_pool(), nn.Flatten(), nn.Linear(8, 5))))
    dwsep.accelerate_(net)
    calls = []
    net.head[2].register_forward_hook(lambda *_: calls.append(1))
    net.train()(torch.randn(4, 3, 20, 24)).sum().backward()
    assert calls == [1]
