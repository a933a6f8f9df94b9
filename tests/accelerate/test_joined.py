"""Joined values, channels taken of them, and plain sums, as GhostNet has them: parts of whole values of a program."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate import _training
from dwsep.accelerate._native_segment import NativeSegment
from dwsep.accelerate.stepwise import Inference, taken_apart
from dwsep.ops.inference_program import Home, Kind
from tests.accelerate.test_mixed_inference import calls
from tests.accelerate.toys import Gate, check_bfloat16, check_inference, check_step, conv_norm, distance, randomise

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


class Ghost(nn.Module):
    """Channels of a 1x1 convolution, and behind them those that a depthwise convolution makes of them."""

    def __init__(self, inputs, outputs, ratio=2, relu=True):
        super().__init__()
        self.outputs, first = outputs, -(-outputs // ratio)
        activation = nn.ReLU(inplace=True) if relu else None
        self.primary = nn.Sequential(*conv_norm(inputs, first, activation=activation))
        self.cheap = nn.Sequential(*conv_norm(first, first * (ratio - 1), 3, groups=first, activation=activation))

    def forward(self, x):
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], dim=1)[:, : self.outputs, :, :]


class Bottleneck(nn.Module):
    """GhostNet's: the sum is written into what the second part returns."""

    def __init__(self, inputs, wide, outputs, stride=1, gate=False, **options):
        super().__init__()
        self.first, self.second = Ghost(inputs, wide, **options), Ghost(wide, outputs, relu=False, **options)
        self.depthwise = nn.Sequential(*conv_norm(wide, wide, 3, stride, wide)) if stride > 1 else nn.Identity()
        self.gate = Gate(wide) if gate else nn.Identity()
        same = inputs == outputs and stride == 1
        parts = [] if same else [*conv_norm(inputs, inputs, 3, stride, inputs), *conv_norm(inputs, outputs)]
        self.shortcut = nn.Sequential(*parts)

    def forward(self, x):
        y = self.second(self.gate(self.depthwise(self.first(x))))
        y += self.shortcut(x)
        return y


def network(*blocks, channels=12):
    ends = nn.Sequential(*conv_norm(channels, 9, activation=nn.ReLU())), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return randomise(nn.Sequential(*conv_norm(3, 12, 3, 2, activation=nn.ReLU()), *blocks, *ends)).eval()


@pytest.mark.parametrize("size", [(20, 24), (7, 9), (2, 2)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"gate": True}, {"stride": 2}, {"stride": 2, "gate": True}, {"ratio": 3}, {"wide": 43}],
    ids=str,
)
def test_ghost_networks_are_one_program(options, batch, size):
    several = options.get("ratio", 2) > 2  # outputs of one channel, which no program's steps put among others
    blocks = Bottleneck(12, options.pop("wide", 44), 12, **options), Bottleneck(12, 24, 18)
    net = network(*blocks, channels=18)
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(batch, 3, *size))
    found = calls(net)
    assert several or (len(found) == 1 and isinstance(found[0], list)), found


def test_what_is_copied_lies_where_it_belongs():
    net = network(Bottleneck(12, 44, 12))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(1, 3, 20, 24))
    (steps,) = net.forward.reading().plan.lowered.values()
    (segment,) = steps
    assert isinstance(segment, NativeSegment)
    assert segment.values[:, 4].tolist().count(Home.PART) == 4
    assert segment.steps[:, 0].tolist().count(Kind.ACTIVATION) == 1  # the sum


class Two(nn.Module):
    """Two values of the same pixels, each made by a step of a program, and what is done with them."""

    def __init__(self, does):
        super().__init__()
        self.does = does
        self.a, self.b = nn.Sequential(*conv_norm(12, 20)), nn.Sequential(*conv_norm(20, 8, activation=nn.SiLU()))
        self.c, self.wide = nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.Conv2d(28, 12, 1)
        self.gate = nn.Conv2d(20, 20, 1)
        self.end, self.narrow = nn.Conv2d(20, 12, 1), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        a = self.a(x)
        return self.does(self, a, self.b(a), x)


def _changed(net, a, b, _):
    y = torch.cat([a, b], 1)
    a += 1
    return net.wide(y) + net.end(a)


def _whole_changed(net, a, b, _):
    y = torch.cat([a, b], 1)
    y *= 2
    return net.end(a) + net.wide(y)


def _cut_changed(net, a, b, _):
    y = torch.cat([a, b], 1)
    y[:, :20].mul_(2)
    return net.end(a) + net.wide(y)


def _input_cut_changed(net, a, _, x):
    y = x[:, :8]
    z = net.narrow(y)
    y += 1
    return net.end(a) + z + net.a(x)[:, :12]


def _changed_alone(net, a, b, _):
    y = torch.cat([a], 1)
    z = net.c(y)
    y *= 2
    return net.end(y) + net.end(a) + net.end(z)


def _cut_of_a_part_changed(net, a, b, _):
    c = a[:, 2:10]
    y = torch.cat([a, b], 1)
    w = net.narrow(c)
    c *= 2
    return net.end(a) + net.wide(y) + w


def _gated(net, a):
    y = net.c(torch.relu(a))
    return y * torch.sigmoid(net.gate(y.mean((2, 3), keepdim=True)))


def _cuts_of_a_gated(net, a, b, x):
    y = _gated(net, a)
    first, moved = net.narrow(y[:, :8]), a.roll(1, 2)
    return first + net.narrow(y[:, 12:]) + net.end(moved)


def _cuts_of_a_gated_first(net, a, b, x):
    y = _gated(net, a)
    first, second = y[:, :8], y[:, 12:]
    return net.end(a.roll(1, 2)) + net.narrow(first) + net.narrow(second)


def _cuts_and_all_of_a_gated(net, a, b, x):
    y = _gated(net, a)
    return net.wide(torch.cat([y[:, :8], net.end(y[:, :99]), b], 1))


DOES = {
    "gated cut": _cuts_of_a_gated,
    "gated cut first": _cuts_of_a_gated_first,
    "gated cut whole": _cuts_and_all_of_a_gated,
    "one changed": _changed_alone,
    "part's cut changed": _cut_of_a_part_changed,
    "taken again": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)) + net.end(a),
    "taken before": lambda net, a, b, x: net.end(a) + net.wide(torch.cat([a, b], 1)),
    "added before": lambda net, a, b, x: net.end(a + net.c(a)) + net.wide(torch.cat([a, b], 1)),
    "added behind": lambda net, a, b, x: (lambda y: net.end(net.c(y) + a) + net.wide(torch.cat([a, b], 1)))(a),
    "added to a part": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)) + net.end(net.c(a) + a),
    "means of a part": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)) * net.end(a.mean((2, 3), keepdim=True)),
    "gate": lambda net, a, b, x: net.end(a * torch.sigmoid(net.c(torch.cat([a, b], 1)[:, 4:24].mean((2, 3), True)))),
    "turned": lambda net, a, b, x: net.wide(torch.cat([b, a], 1)),
    "both": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)) + net.wide(torch.cat([b, a], 1)),
    "twice": lambda net, a, b, x: net.end(torch.cat([a, a], 1)[:, 10:30]),
    "nested": lambda net, a, b, x: net.end(torch.cat([torch.cat([a, b], 1), a], 1)[:, 14:34]),
    "cut": lambda net, a, b, x: net.narrow(torch.cat([a, b], 1)[:, 15:23]) + net.end(torch.cat([a, b], 1)[:, 3:23]),
    "cut of a cut": lambda net, a, b, x: net.narrow(torch.cat([a, b], 1)[:, 7:][:, 1:9]),
    "cut of a part": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)) + net.narrow(a[:, 2:10]),
    "beyond": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)[:, :99]),
    "nothing": lambda net, a, b, x: net.wide(torch.cat([a, b, a[:, 20:]], 1)),
    "depthwise": lambda net, a, b, x: net.end(net.c(torch.cat([a, b], 1)[:, 2:22])),
    "images": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)[:1]),
    "pixels": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)[:, :, 1:]),
    "of the input": lambda net, a, b, x: net.narrow(x[:, 2:10]) + net.end(a),
    "outside": lambda net, a, b, x: net.wide(torch.cat([a, b], 1)) + net.end(a.roll(1, 2)) + net.narrow(b.roll(1, 3)),
    "part changed": _changed,
    "whole changed": _whole_changed,
    "cut changed": _cut_changed,
    "input's cut changed": _input_cut_changed,
    "sum": lambda net, a, b, x: net.end(net.c(a) + a) + net.narrow(b),
    "sum of itself": lambda net, a, b, x: net.end(a + a) + net.narrow(b),
    "sum of a constant": lambda net, a, b, x: net.end(a + 1),
    "sum that broadcasts": lambda net, a, b, x: net.end(a + a.mean((2, 3), keepdim=True)),
    "sum of channels": lambda net, a, b, x: net.end(a) + (net.c(a)[:, :12] + a[:, 8:]),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("does", DOES.values(), ids=DOES.keys())
def test_parts_in_every_position(does, training, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    net = network(Two(does)).train(training)
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 14, 18)
    if training:
        if does in (_changed, _input_cut_changed, _changed_alone, _cut_of_a_part_changed):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                plain(x).sum().backward()
            return
        check_step(net, x)
        return
    check_inference(net, x)
    check_inference(net, torch.randn(1, 3, 9, 9))
    # Alone, so that values go out of the program.
    dwsep.accelerate_(plain[3])
    inner = torch.randn(2, 12, 14, 18)
    with torch.no_grad():
        expected = copy.deepcopy(plain[3])
        dwsep.revert_(expected)
        for _ in range(2):
            assert distance(plain[3](inner.clone()), expected(inner.clone())) < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_ghost_networks_of_bfloat16(autocast):
    check_bfloat16(network(Bottleneck(12, 44, 12, gate=True)), torch.randn(2, 3, 24, 20), autocast)


@pytest.mark.parametrize("name", DOES)
def test_steps_one_by_one(name):
    net = network(Bottleneck(12, 44, 12, gate=True), Two(DOES[name]))
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 20, 24)
    with torch.no_grad():
        expected = net(x)
        apart = taken_apart(net, False)
        assert isinstance(apart, Inference)
        seen = []

        def watch(number, run):
            seen.append(number)
            return run()

        assert distance(apart.run_steps(x, watch), expected) < 1e-6
    assert seen == list(range(len(apart.steps(x))))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_part_that_is_all_that_is_wanted(frozen):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*conv_norm(3, 20, 3), *conv_norm(20, 20, 3, groups=20, activation=nn.ReLU()))
            self.a, self.b, self.both = nn.Linear(20, 8), nn.Linear(20, 12), nn.Linear(20, 5)

        def forward(self, x):
            x = self.body(x).mean((2, 3))
            a, b = self.a(x), self.b(x)
            self.both(torch.cat([a, b], 1))
            return b

    net = randomise(Heads()).eval()
    dwsep.accelerate_(net, frozen=frozen)
    check_inference(net, torch.randn(2, 3, 9, 11))


@pytest.mark.parametrize("convolution", ["narrow", "end"])
@pytest.mark.parametrize("channels", [7, 9, 12])
def test_other_channels_are_refused(convolution, channels):
    net = network(Two(lambda net, a, b, x: getattr(net, convolution)(a[:, :channels])))
    dwsep.accelerate_(net)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"channels|shape"):
            net(torch.randn(2, 3, 14, 18))
