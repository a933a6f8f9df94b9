"""Convolutions that each take some of the channels, as MixNet's: one stage in training, right in inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate import _training
from tests.accelerate.toys import check_inference, check_step, conv_norm, randomise


@pytest.fixture(autouse=True)
def _stages_everywhere(monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)


class Mixed(nn.Module):
    """The channels split, a convolution for each part, their outputs joined: as timm's MixedConv2d."""

    def __init__(self, inputs, outputs, sizes, stride=1, depthwise=True, bias=(False, False, False)):
        super().__init__()
        self.splits = self._split(inputs, len(sizes))
        self.convs = nn.ModuleList(
            nn.Conv2d(c, k, size, stride, size // 2, groups=c if depthwise else 1, bias=has_bias)
            for c, k, size, has_bias in zip(self.splits, self._split(outputs, len(sizes)), sizes, bias, strict=False)
        )

    @staticmethod
    def _split(channels, parts):
        each = channels // parts
        return [channels - each * (parts - 1)] + [each] * (parts - 1)

    def forward(self, x):
        parts = torch.split(x, self.splits, 1)
        return torch.cat([conv(parts[i]) for i, conv in enumerate(self.convs)], 1)


class Net(nn.Module):
    """Stem, a block of mixed convolutions with a sum, classifier."""

    def __init__(self, stride=1, activation=nn.SiLU, bias=(False, False, False), mixed=None, **options):
        super().__init__()
        depthwise = conv_norm(12, 12, 3, groups=12, activation=activation())
        self.stem = nn.Sequential(*conv_norm(3, 12, 3, 2, activation=activation()), *depthwise)
        self.expand = Mixed(12, 40, (1, 1), depthwise=False, bias=bias)
        self.norm1, self.act1 = nn.BatchNorm2d(40, **options), activation()
        self.depthwise = Mixed(40, 40, (3, 5, 7), stride, bias=bias) if mixed is None else mixed
        self.norm2, self.act2 = nn.BatchNorm2d(40, **options), activation()
        self.project = Mixed(40, 12, (1, 1), depthwise=False)
        self.norm3 = nn.BatchNorm2d(12, **options)
        self.classifier, self.skips = nn.Linear(12, 5), stride == 1

    def forward(self, x):
        x = self.stem(x)
        y = self.act1(self.norm1(self.expand(x)))
        y = self.act2(self.norm2(self.depthwise(y)))
        y = self.norm3(self.project(y))
        y = y + x if self.skips else y
        return self.classifier(y.mean((2, 3)))


@pytest.fixture(name="x")
def _x():
    return torch.randn(3, 3, 20, 24)


def mixed_stages(net):
    """How many stages of several convolutions the programs read of a net have."""
    program = net.__dict__["forward"].readings[0].program
    return sum(bool(stage.mixed) for stage in program.stages())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"activation": nn.GELU},
        {"activation": nn.Mish},
        {"bias": (True, True, True)},
        {"bias": (True, False, True)},
        {"momentum": 0.3, "eps": 0.1},
        {"affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_steps_and_inference_match_eager(options, x):
    net = randomise(Net(**options))
    dwsep.accelerate_(net)
    check_step(net, x)
    check_step(net, x.requires_grad_())
    assert mixed_stages(net) == 3
    net.eval()
    check_step(net, x)
    check_inference(net, x.detach())
    net.norm2.train()
    check_inference(net, x.detach())


@pytest.mark.parametrize("padding", ["same", "same_tf"])
def test_own_layer(padding, x):
    net = randomise(Net(2, mixed=dwsep.nn.MixConv2d(40, (3, 5, 7), 2, padding)))
    report = dwsep.accelerate_(net)
    check_step(net, x.requires_grad_())
    assert mixed_stages(net) == 3
    assert "3x3, 5x5, 7x7 depthwise, batch norm, silu" in [line.what for line in report.fused]
    check_inference(net.eval(), x.detach())


def test_report_names_one_chain():
    net = Net()
    report = dwsep.accelerate_(net)
    assert [(line.name, line.what) for line in report.fused] == [
        ("stem.0", "3x3, batch norm, silu"),
        ("stem.3", "3x3 depthwise, batch norm, silu"),
        ("expand.convs.0", "1x1 in 2 parts, batch norm, silu"),
        ("depthwise.convs.0", "3x3, 5x5, 7x7 depthwise, batch norm, silu"),
        ("project.convs.0", "1x1 in 2 parts, batch norm, sum"),
    ]
    assert not report.left_alone


@pytest.mark.parametrize("frozen", ["depthwise.convs.1", "depthwise", "norm2", "stem", "all but two"])
def test_frozen_parameters_get_no_gradient(frozen, x):
    net = randomise(Net(bias=(True, True, True)))
    dwsep.accelerate_(net)
    for name, parameter in net.named_parameters():
        # The bias alone would be compared with what is zero but for rounding: its norm takes it out again.
        some = ("depthwise.convs.2.bias", "norm3.weight")
        kept = name in some if frozen == "all but two" else not name.startswith(frozen)
        parameter.requires_grad_(kept)
    check_step(net, x)


def test_frozen_norm_takes_its_running_statistics(x):
    net = randomise(Net())
    dwsep.accelerate_(net)
    net.norm2.eval()
    check_step(net, x.requires_grad_())


@pytest.mark.parametrize("options", [{}, {"bias": (True, False, True), "stride": 2}], ids=str)
def test_stages_one_by_one_match_eager(options, x, monkeypatch):
    monkeypatch.setattr(_training, "SEGMENTS", False)
    net = randomise(Net(**options))
    dwsep.accelerate_(net)
    check_step(net, x.requires_grad_())
    net.norm2.eval()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(("depthwise.convs.1", "norm3", "stem")))
    check_step(net, x)


def test_output_without_a_gradient(x):
    net = randomise(Net())
    dwsep.accelerate_(net)

    def without(model):
        def call(x):
            with torch.no_grad():
                return model(x)

        return call

    check_step(net, x, without)


class _Rearranged(Mixed):
    def forward(self, x):
        parts = torch.split(x, self.splits, 1)
        return torch.cat([self.convs[i](parts[i]) for i in (1, 0, 2)], 1)


class _Written(Mixed):
    def forward(self, x):
        parts = torch.split(x, self.splits, 1)
        first = self.convs[0](parts[0])
        x.mul_(2)
        return torch.cat([first] + [self.convs[i](parts[i]) for i in (1, 2)], 1)


class _Shared(Mixed):
    def forward(self, x):
        parts = torch.split(x, self.splits, 1)
        outputs = [conv(parts[i]) for i, conv in enumerate(self.convs)]
        return torch.cat(outputs, 1) + outputs[0].mean()


@pytest.mark.parametrize("kind", [_Rearranged, _Written, _Shared])
def test_what_only_looks_alike_runs_as_it_is(kind, x):
    net = randomise(Net(mixed=kind(40, 40, (3, 5, 7))))
    dwsep.accelerate_(net)
    if kind is not _Written:  # which autograd refuses, in eager, too
        check_step(net, x)
    check_inference(net.eval(), x)
    assert mixed_stages(net) == 2


def test_hooks_see_their_convolution_run(x):
    net = randomise(Net())
    dwsep.accelerate_(net)
    check_step(net, x)
    seen = []
    net.depthwise.convs[1].register_forward_hook(lambda *args: seen.append(args))
    check_step(net, x)
    assert len(seen) == 3  # ours, eager's, and that of float64
    assert mixed_stages(net) == 2


def test_parts_of_different_sizes_raise_as_in_eager(x):
    net = Net()
    net.depthwise.convs[1].padding = (0, 0)
    with pytest.raises(RuntimeError, match=r"[Ss]ize"):
        net(x)
    dwsep.accelerate_(net)
    with pytest.raises(RuntimeError, match=r"[Ss]ize"):
        net(x)
