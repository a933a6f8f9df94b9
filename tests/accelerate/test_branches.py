"""Parallel linear branches at inference: one convolution where they can be, and right where they cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import dwsep
from dwsep.accelerate._program import Stage
from tests.accelerate.toys import check_bfloat16, check_inference, conv_norm, randomise


class Branches(nn.Module):
    """The sum of what its parts make of one input, each a list of layers."""

    def __init__(self, *parts, activation=None, norm=None):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(*part) for part in parts)
        self.norm, self.act = norm or nn.Identity(), activation or nn.Identity()

    def forward(self, x):
        first, *others = (part(x) for part in self.parts)
        for other in others:
            first = first + other
        return self.act(self.norm(first))


def depthwise(kernel, channels=12, stride=1, norm=True, **options):
    padding = options.pop("padding", None)
    conv = nn.Conv2d(channels, channels, kernel, stride, groups=channels, bias=options.pop("bias", False), **options)
    sizes = conv.kernel_size, conv.dilation
    conv.padding = padding or tuple(gap * (size - 1) // 2 for size, gap in zip(*sizes))
    return [conv, nn.BatchNorm2d(channels)] if norm else [conv]


def network(*middle):
    """With a stem, and a depthwise convolution, without which nothing is looked at."""
    ends = nn.Sequential(*depthwise(3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return randomise(nn.Sequential(*conv_norm(3, 12, 3, 2, activation=nn.SiLU()), *middle, *ends)).eval()


def stages(net):
    """The convolutions and norms of each of the plan's steps that have any."""
    steps = [planned.modules for planned in net.forward.reading().plan.steps]
    found = [[m for m in modules if isinstance(m, nn.Conv2d | nn.BatchNorm2d)] for modules in steps]
    return [modules for modules in found if modules]


def check(net, x=None):
    check_inference(net, torch.randn(2, 3, 20, 24) if x is None else x)


CASES = {
    "MobileOne, depthwise": lambda: Branches(
        depthwise(3), depthwise(3), depthwise(1), [nn.BatchNorm2d(12)], activation=nn.ReLU()
    ),
    "MobileOne, pointwise": lambda: Branches(
        [nn.BatchNorm2d(12)], conv_norm(12, 12), conv_norm(12, 12), activation=nn.ReLU()
    ),
    "MobileOne, strided": lambda: Branches(depthwise(1, stride=2), depthwise(3, stride=2), activation=nn.ReLU()),
    "RepVGG": lambda: Branches(conv_norm(12, 12, 3), conv_norm(12, 12), [nn.BatchNorm2d(12)], activation=nn.ReLU()),
    "RepVGG, strided": lambda: Branches(conv_norm(12, 12, 3, 2), conv_norm(12, 12, 1, 2), activation=nn.SiLU()),
    "RepViT": lambda: Branches(
        depthwise(3), depthwise(1, norm=False, bias=True), [nn.Identity()], norm=nn.BatchNorm2d(12)
    ),
    "GhostNet": lambda: Branches([nn.BatchNorm2d(12)], depthwise(3), activation=nn.ReLU()),
    "sizes": lambda: Branches(depthwise(7), depthwise(5, bias=True), depthwise((1, 5)), depthwise((3, 1))),
    "dilation": lambda: Branches(depthwise(5), depthwise(3, dilation=2), depthwise(3)),
    "dilated alike": lambda: Branches(depthwise(5, dilation=2), depthwise(3, dilation=2), depthwise(1)),
    "plain": lambda: Branches([nn.Conv2d(12, 12, 3, padding=1)], [nn.Conv2d(12, 12, 1)]),
}


@pytest.mark.parametrize("case", list(CASES))
def test_one_convolution(case):
    net = network(CASES[case]())
    dwsep.accelerate_(net)
    check(net)
    found = stages(net)
    assert len(found) == 3
    branches = {module for module in net[3].modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    assert set(found[1]) == branches


class _Taken(Branches):
    """A branch that something else takes as well."""

    def forward(self, x):
        first, second = (part(x) for part in self.parts)
        return (first + second) * first


class _WrittenBetween(Branches):
    def forward(self, x):
        first = self.parts[0](x)
        x.mul_(2)
        return first + self.parts[1](x)


class _IntoTheInput(Branches):
    def forward(self, x):
        y = self.parts[0](x)
        z = x
        x += y
        return x + 0.5 * z


class _Product(Branches):
    def forward(self, x):
        return self.parts[0](x) * self.parts[1](x)


class _Scaled(Branches):
    def forward(self, x):
        return torch.add(self.parts[0](x), self.parts[1](x), alpha=2)


LEFT = {
    "taken": lambda: _Taken(depthwise(3), depthwise(1)),
    "written between": lambda: _WrittenBetween(depthwise(3), depthwise(1)),
    "into the input": lambda: _IntoTheInput(depthwise(3)),
    "product": lambda: _Product(depthwise(3), depthwise(1)),
    "scaled": lambda: _Scaled(depthwise(3), depthwise(1)),
    "activation between": lambda: Branches([*depthwise(3), nn.ReLU()], depthwise(1)),
    "two kinds": lambda: Branches(depthwise(3), conv_norm(12, 12)),
    "neither holds the other": lambda: Branches(depthwise((1, 3)), depthwise((3, 1))),
    "between the taps": lambda: Branches(depthwise(5, dilation=2), depthwise(3)),
    "identity of other channels": lambda: nn.Sequential(Branches(conv_norm(12, 1), [nn.Identity()])),
    "grouped": lambda: Branches([nn.Conv2d(12, 12, 3, padding=1, groups=3)], depthwise(1)),
    "padded otherwise": lambda: Branches(
        [nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect", groups=12)], depthwise(1)
    ),
    "one side longer": lambda: Branches(
        *([nn.Conv2d(12, 12, size, padding="same", groups=12)] for size in (4, 2)), activation=nn.ReLU()
    ),
    "norm alone": lambda: Branches([nn.BatchNorm2d(12)], [nn.BatchNorm2d(12)]),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", list(LEFT))
def test_what_is_left_as_it_is(case):
    net = network(LEFT[case]())
    dwsep.accelerate_(net)
    check(net)


def test_sums_of_sums_and_of_other_values():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = CASES["GhostNet"](), CASES["RepViT"]()
            self.pairs = nn.ModuleList(nn.Sequential(*depthwise(size)) for size in (3, 1, 5))

        def forward(self, x):
            y = self.second(self.first(x)) + x
            a, b, c = (pair(y) for pair in self.pairs)
            return (a + (b + c)) + (0 + y)

    net = network(Both())
    dwsep.accelerate_(net)
    check(net)
    assert len(stages(net)) == 5


@pytest.mark.parametrize("change", ["weight", "statistics", "eps", "training"])
def test_branches_may_change(change):
    net = network(CASES["MobileOne, depthwise"]())
    dwsep.accelerate_(net)
    check(net)
    part = net[3].parts[2]
    with torch.no_grad():
        if change == "weight":
            part[0].weight.add_(1)
        elif change == "statistics":
            part[1].running_mean.add_(1)
        elif change == "eps":
            part[1].eps = 1.0
        else:
            part[1].train()
    check(net)


def test_a_hook_on_a_branch_is_called():
    net = network(CASES["MobileOne, depthwise"]())
    dwsep.accelerate_(net)
    check(net)
    net[3].parts[1][0].register_forward_hook(lambda module, args, out: out + 1)
    check(net)


def test_the_program_for_training_keeps_its_branches():
    net = network(CASES["RepVGG"]())
    dwsep.accelerate_(net)
    check(net)
    program = net.forward.reading().program
    assert sum(len(step.convs) for step in program.steps if isinstance(step, Stage)) == 4
    assert not any(step.stands_for for step in program.steps if isinstance(step, Stage))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    net = network(CASES["MobileOne, pointwise"](), CASES["RepViT"]())
    check_bfloat16(net, torch.randn(2, 3, 20, 24), autocast)


@pytest.mark.parametrize(("name", "most"), [("mobileone_s0", 30), ("repvit_m1_0", 150)])
def test_published_networks(name, most):
    torch.manual_seed(0)
    net = randomise(timm.create_model(name)).eval()
    dwsep.accelerate_(net)
    check(net, torch.randn(1, 3, 64, 64))
    assert len(net.forward.reading().plan.steps) <= most


def test_parameters_elsewhere_than_on_the_cpu():
    net = network(CASES["RepVGG"]()).to("meta")
    dwsep.accelerate_(net)
    with torch.no_grad():
        assert net(torch.empty(1, 3, 20, 24, device="meta")).shape == (1, 12)


def test_the_layout_of_the_result_is_that_of_the_modules():
    net = network(CASES["RepVGG"](), CASES["MobileOne, pointwise"]())[:-2].to(memory_format=torch.channels_last)
    dwsep.accelerate_(net)
    with torch.no_grad():
        for _ in range(2):
            assert net(torch.randn(2, 3, 20, 24)).is_contiguous(memory_format=torch.channels_last)
