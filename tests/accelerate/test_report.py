"""What ``accelerate_`` says it did, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep
from tests.accelerate.toys import Net, randomise


def test_report_names_every_chain():
    report = dwsep.accelerate_(Net(gate=True))
    assert [(line.name, line.what) for line in report.fused][:5] == [
        ("stem.0", "3x3, batch norm, relu6"),
        ("blocks.0.expand.0", "1x1, batch norm, relu6"),
        ("blocks.0.depthwise.0", "3x3 depthwise, batch norm, relu6"),
        ("blocks.0.gate.reduce", "1x1, relu"),
        ("blocks.0.project.0", "1x1, batch norm, sum"),
    ]
    assert report.left_alone == ()
    assert str(report).splitlines()[0] == "10 chains run fused"
    assert "blocks.0.depthwise.0" in str(report)
    assert "<td>3x3 depthwise, batch norm, relu6</td>" in report._repr_html_()


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 4), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())], ids=["linear", "dense"]
)
def test_nothing_to_gain_is_left_alone(model):
    report = dwsep.accelerate_(model)
    assert str(report) == "nothing to gain, left alone: the model has no depthwise torch.nn.Conv2d"
    assert report.fused == ()
    assert not any("forward" in vars(module) for module in model.modules())


def test_filter_leaves_modules_alone():
    net = randomise(Net()).eval()
    plain_block = net.blocks[0]
    report = dwsep.accelerate_(net, filter_fn=lambda name, module: name != "blocks.0")
    assert not any("forward" in vars(module) for module in plain_block.modules())
    assert not any(line.name.startswith("blocks.0.") for line in report.fused)
    assert ("blocks.0", "filter_fn returned False") in [(line.name, line.reason) for line in report.left_alone]
    seen = []
    plain_block.forward = lambda x: seen.append(x) or type(plain_block).forward(plain_block, x)
    with torch.no_grad():
        net(torch.randn(1, 3, 16, 16))
    assert len(seen) == 1


def test_root_may_be_excluded():
    net = Net()
    report = dwsep.accelerate_(net, filter_fn=lambda name, module: False)
    assert report.fused == ()
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_forward_replaced_by_others_is_left_alone():
    net = randomise(Net()).eval()
    own = net.blocks[0].forward
    net.blocks[0].forward = lambda x: own(x)
    report = dwsep.accelerate_(net)
    assert ("blocks.0", "its forward was replaced or compiled") in [
        (line.name, line.reason) for line in report.left_alone
    ]
    dwsep.revert_(net)
    assert "forward" in vars(net.blocks[0])


@pytest.mark.parametrize("call", [dwsep.accelerate_, dwsep.revert_])
def test_model_must_be_a_module(call):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3 of type int"):
        call(3)


def test_filter_must_be_callable():
    with pytest.raises(TypeError, match="filter_fn must be a function of a name and a module, got 'no'"):
        dwsep.accelerate_(Net(), filter_fn="no")
