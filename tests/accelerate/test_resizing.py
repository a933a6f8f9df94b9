"""Bilinear resizing in accelerated networks: the library's kernels where torch's call is theirs, torch's elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dwsep
from tests.accelerate.toys import distance, is_zero_but_for_rounding, randomise

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)

WAYS = {
    "a size": (lambda x: F.interpolate(x, size=(21, 18), mode="bilinear", align_corners=True), True),
    "one size": (lambda x: F.interpolate(x, 20, None, "bilinear"), True),
    "a factor": (lambda x: F.interpolate(x, scale_factor=2.3, mode="bilinear"), True),
    "two factors": (lambda x: F.interpolate(x, scale_factor=(2, 1.5), mode="bilinear", align_corners=False), True),
    "a module": (nn.Upsample(scale_factor=2, mode="bilinear"), True),
    "a module of a size": (nn.UpsamplingBilinear2d((17, 30)), True),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), False),
    "a factor made anew": (lambda x: F.interpolate(x, None, 2.3, "bilinear", None, True), False),
    "antialiased": (lambda x: F.interpolate(x, (5, 6), mode="bilinear", antialias=True), False),
}


class Net(nn.Module):
    def __init__(self, resize):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project, self.after = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        if isinstance(resize, nn.Module):
            self.resize = resize
        else:
            object.__setattr__(self, "resize", resize)
        self.head = nn.Conv2d(24, 3, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.head(self.resize(F.relu(self.after(self.project(x)))))


def _step(net, x):
    y = net(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("way", list(WAYS))
def test_results_and_gradients(way, monkeypatch):
    torch.manual_seed(0)
    resize, ours = WAYS[way]
    net = randomise(Net(resize))
    exact = copy.deepcopy(net).double()
    dwsep.accelerate_(net)
    x = torch.randn(2, 8, 9, 10)
    calls = []
    from dwsep.accelerate import _resizing

    plain = _resizing._bilinear
    monkeypatch.setattr(_resizing, "_bilinear", lambda **given: (calls.append(plain(**given)), calls[-1])[1])
    net.train()
    exact.train()
    assert distance(_step(net, x), _step(exact, x.double())) < 1e-5
    net.eval()
    exact.eval()
    with torch.no_grad():
        for _ in range(2):
            assert distance(net(x), exact(x.double())) < 1e-5
    assert len(calls) >= 3
    assert {call is not None for call in calls} == {ours}


def test_hooks_of_a_module_that_resizes_are_called():
    net = Net(nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    dwsep.accelerate_(net)
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        net(x)
        seen = []
        net.resize.register_forward_hook(lambda *_: seen.append(1))
        net(x)
    assert seen == [1]


def test_a_factor_that_changes_is_seen():
    net = Net(nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    dwsep.accelerate_(net)
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        assert net(x).shape[2:] == (12, 12)
        net.resize.scale_factor = 3.0
        assert net(x).shape[2:] == (18, 18)


def test_deeplab_equals_float64():
    # The norm of what is pooled sees two numbers a channel: what rounding makes of its gradient is chance, whoever
    # computes it, and is compared over a few draws.
    draws = [_deeplab_distances(seed) for seed in range(3)]
    for name in draws[0]:
        mine, theirs = (sum(draw[name][whose] ** 2 for draw in draws) ** 0.5 for whose in range(2))
        assert mine < 2 * theirs + 1e-3 * len(draws) ** 0.5, name


def _deeplab_distances(seed):
    """By name, how far the accelerated step's output and gradients are from float64, and eager's."""
    torch.manual_seed(seed)
    net = randomise(dwsep.networks.create("deeplab_v3_plus", num_classes=3, width_multiplier=0.25, dropout=0.0))
    exact = copy.deepcopy(net).double()
    dwsep.accelerate_(net)
    net.train()
    exact.train()
    x = torch.randn(2, 3, 65, 80)
    eager = copy.deepcopy(exact).float()
    wanted = _step(exact, x.double())
    total = max(each.norm().item() for each in wanted[1:])
    names = ["output", *(name for name, _ in net.named_parameters())]
    distances = {}
    for name, mine, theirs, expected in zip(names, _step(net, x), _step(eager, x), wanted, strict=True):
        if name != "output" and is_zero_but_for_rounding(expected, total):
            assert mine.norm() < 1e-5 * total, name
        else:
            distances[name] = distance(mine, expected), distance(theirs, expected)
    return distances
