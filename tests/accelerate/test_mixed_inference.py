"""Mixed stages in inference: one native program with the rest, whose steps read and write parts of whole values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate._native_segment import NativeSegment
from dwsep.accelerate.stepwise import Inference, taken_apart
from dwsep.ops.inference_program import Home, Kind
from tests import problems
from tests.accelerate.test_mixed import Mixed
from tests.accelerate.toys import Gate, check_inference, conv_norm, randomise

pytestmark = pytest.mark.skipif(
    not dwsep.ops.native_status().loaded, reason=f"native library: {dwsep.ops.native_status().reason}"
)


class Block(nn.Module):
    """Expansion, depthwise, squeeze-and-excite, project, sum; each convolution of some sizes, mixed or not."""

    def __init__(self, expand=(1,), depthwise=(3, 5, 7), project=(1,), gate=True, stride=1, add=None):
        super().__init__()
        self.expand = nn.Sequential(self._conv(12, 44, expand), nn.BatchNorm2d(44), nn.SiLU())
        self.depthwise = nn.Sequential(self._conv(44, 44, depthwise, stride, 44), nn.BatchNorm2d(44), nn.SiLU())
        self.gate = Gate(44) if gate else nn.Identity()
        self.project = nn.Sequential(self._conv(44, 12, project), nn.BatchNorm2d(12))
        self.add = add

    @staticmethod
    def _conv(inputs, outputs, sizes, stride=1, groups=1):
        if len(sizes) > 1:
            return Mixed(inputs, outputs, sizes, stride, depthwise=groups > 1, bias=(True, False, True, True))
        return nn.Conv2d(inputs, outputs, sizes[0], stride, sizes[0] // 2, groups=groups)

    def forward(self, x):
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return y if self.add is None else y + self.add(x)


def network(block):
    ends = nn.Sequential(*conv_norm(12, 9, activation=nn.ReLU())), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return randomise(nn.Sequential(*conv_norm(3, 12, 3, 2, activation=nn.SiLU()), block, *ends)).eval()


def calls(net):
    """What runs for the one shape seen: a native program's kinds of steps, the names of others."""
    (steps,) = net.forward.reading().plan.lowered.values()
    return [
        list(map(Kind, step.steps[:, 0].tolist())) if isinstance(step, NativeSegment) else type(step.run).__name__
        for step in steps
    ]


@pytest.mark.parametrize("size", [(20, 24), (7, 9), (2, 2)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate": False},
        {"stride": 2},
        {"expand": (1, 1), "depthwise": (3, 5)},
        {"expand": (1, 1), "depthwise": (5,), "project": (1, 1)},
        {"project": (1, 1), "add": nn.Identity()},
        {"project": (1, 1), "gate": False, "add": nn.Identity()},
        {"expand": (1, 1), "depthwise": (3, 5, 7, 9), "project": (1, 1, 1), "add": nn.Identity()},
    ],
    ids=str,
)
def test_a_network_is_one_program(options, batch, size):
    net = network(Block(**options))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(batch, 3, *size))
    (kinds,) = calls(net)
    assert isinstance(kinds, list)
    # Neither copies of channels, nor means or products by themselves.
    assert set(kinds) <= {Kind.DENSE, Kind.POINTWISE, Kind.DEPTHWISE, Kind.SEPARABLE, Kind.POOL}
    assert kinds.count(Kind.POOL) == 1  # the head's


def test_an_expansion_that_is_half_of_a_separable_convolution():
    block = Block(project=(1, 1))
    net = network(nn.Sequential(*conv_norm(12, 12, 3, groups=12, activation=nn.ReLU()), block))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 20, 24))
    (kinds,) = calls(net)
    assert kinds.count(Kind.SEPARABLE) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_for_any_number_of_threads(threads):
    net = network(Block(project=(1, 1), add=nn.Identity()))
    dwsep.accelerate_(net)
    x = torch.randn(1, 3, 30, 31)
    with torch.no_grad():
        with problems.threads(2):
            wanted = net(x)
        with problems.threads(threads):
            assert torch.equal(net(x), wanted)


class _Means(nn.Module):
    """What broadcasts where it is added."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


class _Doubled(nn.Module):
    """Something that no program computes."""

    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "options",
    [
        {"expand": (1, 3)},  # a part which is torch's, or read by patches
        {"expand": (3, 5)},
        {"project": (1, 1), "add": _Means()},
        {"project": (1, 1), "add": _Doubled()},
        {"expand": (1, 1), "depthwise": (3, 5), "gate": False, "project": (3, 3)},
    ],
    ids=str,
)
def test_what_no_program_holds_is_right(options):
    net = network(Block(**options))
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 20, 24))
    assert len(calls(net)) > 1


def test_a_value_whose_parts_are_taken_is_taken_whole_as_well():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.pool, self.other = Block(gate=False), nn.MaxPool2d(3, 1, 1), nn.Conv2d(44, 12, 1)

        def forward(self, x):
            y = self.block.depthwise(self.block.expand(x))
            return self.block.project(y) + self.other(self.pool(y))

    net = network(Both())
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 20, 24))


def test_a_product_that_others_take_as_well():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.other = Block(project=(1, 1)), nn.Conv2d(44, 12, 1)

        def forward(self, x):
            y = self.block.gate(self.block.depthwise(self.block.expand(x)))
            return self.block.project(y) + self.other(y)

    net = network(Both())
    dwsep.accelerate_(net)
    check_inference(net, torch.randn(2, 3, 20, 24))


@pytest.mark.parametrize("options", [{}, {"project": (1, 1), "add": nn.Identity()}, {"expand": (1, 3)}], ids=str)
def test_step_by_step(options):
    net = network(Block(**options))
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 20, 24)
    with torch.no_grad():
        wanted = net(x)
        apart = taken_apart(net, training=False)
        assert isinstance(apart, Inference)
        steps, seen = apart.steps(x), []
        assert torch.allclose(apart.run_steps(x, lambda number, run: (seen.append(number), run())), wanted, atol=1e-6)
    assert seen == list(range(len(steps)))
    assert {step.call for step in steps} == set(range(len(calls(net))))
    covered = {id(module) for step in steps for module in step.modules}
    assert {id(m) for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)} <= covered


def test_parts_lie_in_whole_values():
    net = network(Block(expand=(1, 1), depthwise=(3, 5), project=(1, 1), add=nn.Identity()))
    dwsep.accelerate_(net)
    with torch.no_grad():
        net(torch.randn(1, 3, 20, 24))
    ((segment,),) = net.forward.reading().plan.lowered.values()
    rows = segment.values.tolist()
    parts = [row for row in rows if row[4] == Home.PART]
    # Of what the expansions take and of what the depthwise stage makes, its means, what the product took, and its
    # gates, the result and what is added.
    assert len(parts) == 7 * 2
    for row in parts:
        assert row[6] + row[1] <= rows[row[5]][1]


class _Gated(nn.Module):
    """Channels times their gate, as squeeze-and-excite leaves them."""

    def __init__(self):
        super().__init__()
        self.gate = Gate(12)

    def forward(self, x):
        return self.gate(x)


class _ScaledExpansion(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.gamma = nn.Conv2d(12, 44, 1), nn.Parameter(torch.rand(44, 1, 1) + 2)
        self.depthwise, self.project = Mixed(44, 44, (3, 5)), nn.Conv2d(44, 12, 1)

    def forward(self, x):
        return self.project(self.depthwise(self.expand(x) * self.gamma))


class _ProductForTwoSegments(nn.Module):
    def __init__(self):
        super().__init__()
        depthwise = conv_norm(12, 12, 3, groups=12, activation=nn.ReLU())
        self.gate, self.pool = nn.Sequential(*depthwise, _Gated()), nn.MaxPool2d(3, 1, 1)
        self.first, self.second = (Mixed(12, 12, (1, 1), depthwise=False) for _ in range(2))

    def forward(self, x):
        x = self.gate(x)
        return self.pool(self.first(x)) + self.second(x)


class _TwoMeans(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Sequential(*conv_norm(12, 12, 3, groups=12, activation=nn.ReLU()))
        self.gate = nn.Conv2d(12, 12, 1)

    def forward(self, x):
        x = self.depthwise(x)
        gate = self.gate(x.mean((2, 3), keepdim=True))
        return x * torch.sigmoid(gate + x.mean((2, 3), keepdim=True))


class _GatedExpansion(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.expand, self.norm1 = _Gated(), Mixed(12, 44, (1, 1), depthwise=False), nn.BatchNorm2d(44)
        self.depthwise, self.norm2, self.project = Mixed(44, 44, (3, 5)), nn.BatchNorm2d(44), nn.Conv2d(44, 12, 1)

    def forward(self, x):
        return self.project(self.norm2(self.depthwise(self.norm1(self.expand(self.gate(x))))))


@pytest.mark.parametrize("block", [_ScaledExpansion, _ProductForTwoSegments, _TwoMeans, _GatedExpansion])
def test_steps_that_are_taken_twice_or_scaled(block):
    net = network(block())
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 20, 24)
    check_inference(net, x)
    with torch.no_grad():
        wanted = net(x)
        apart = taken_apart(net, training=False)
        assert isinstance(apart, Inference)
        assert torch.allclose(apart.run_steps(x, lambda number, run: run()), wanted, atol=1e-6)
