"""The package's own layers and networks run as chains, whole networks of them at once."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import dwsep
from dwsep.accelerate import _training
from dwsep.nn import DepthwiseSeparableConv2d
from tests.accelerate.toys import Net, check_step, distance, program_runs, randomise

NORMS = {"norm": "batch", "inner_norm": "batch"}


@pytest.fixture(autouse=True)
def _stages_everywhere(monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "dilation": 2, "padding": [(0, 1), (2, 0)]},
        {"inner_activation": "silu", "activation": "relu6"},
        {"order": "pointwise_first", "inner_activation": "relu"},
        {"residual": "input", "activation": "hardswish"},
        {"residual": "depthwise", "inner_activation": "gelu"},
        {"activation": torch.tanh, "inner_activation": nn.Mish()},
        {"padding": "same_tf", "stride": 2, "bias": False},
        {"norm": lambda channels: nn.GroupNorm(4, channels)},
    ],
    ids=" ".join,  # of the names of what is set: functions would be written with their addresses
)
def test_layer_trains_and_runs_as_before(options):
    torch.manual_seed(1)
    layer = randomise(DepthwiseSeparableConv2d(8, 8, **{**NORMS, **options}))
    report = dwsep.accelerate_(layer)
    assert [line.what for line in report.fused if "depthwise" in line.what]
    x = torch.randn(3, 8, 11, 14, requires_grad=True)
    check_step(layer, x, both_layouts=True)
    plain = copy.deepcopy(layer).eval()
    dwsep.revert_(plain)
    layer.eval()
    with torch.no_grad():
        assert distance(layer(x), plain(x)) < 1e-6
        assert program_runs(layer)
        assert distance(layer(x[0]), plain(x[0])) < 1e-6
    with torch.no_grad():
        layer.pointwise.weight.mul_(2)
        plain.pointwise.weight.mul_(2)
        assert distance(layer(x), plain(x)) < 1e-6


@pytest.mark.parametrize(
    "layer",
    [
        DepthwiseSeparableConv2d(8, 8, depth_multiplier=2, **NORMS),
        DepthwiseSeparableConv2d(8, 8, padding_mode="circular", **NORMS),
        DepthwiseSeparableConv2d(8, 8, padding=0, residual="input", **NORMS),
        dwsep.nn.DepthwiseSeparableConv1d(8, 8, **NORMS),
        dwsep.nn.DepthwiseConv2d(8, 3),
    ],
    ids=["multiplier", "circular", "unequal residual", "1d", "depthwise"],
)
def test_layer_that_chooses_its_kernels_itself(layer):
    report = dwsep.accelerate_(layer)
    assert report.fused == ()
    assert "forward" not in vars(layer)
    net = nn.Sequential(Net().stem, copy.deepcopy(layer), Net().blocks)
    assert dwsep.accelerate_(net).fused
    assert "forward" not in vars(net[1])


def test_network_trains_on_stages_from_end_to_end(monkeypatch):
    net = dwsep.networks.create("mobilenet_v1", num_classes=5, in_channels=1, width_multiplier=0.25, stem="small")
    keys = list(net.state_dict())
    report = dwsep.accelerate_(randomise(net))
    assert len(report.fused) == 27
    assert list(net.state_dict()) == keys
    programs, plain = [], _training.run
    monkeypatch.setattr(_training, "run", lambda program, *rest: programs.append(program) or plain(program, *rest))
    x = torch.randn(4, 1, 28, 28)
    check_step(pickle.loads(pickle.dumps(net)), x, both_layouts=True)
    assert [len(program.stages()) for program in programs] == [27]
