"""The network in torch.nn alone computes what ours does, on the same weights, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dwsep
from dwsep.networks._plain import mobilenet_v1_plain
from dwsep.networks.mobilenet_v1 import mobilenet_v1

OPTIONS = {"in_channels": 1, "width_multiplier": 0.25, "stem": "small"}


@pytest.fixture(params=[False, True], ids=["published", "residual"])
def twins(request):
    ours = mobilenet_v1(10, residual=request.param, **OPTIONS)
    plain = mobilenet_v1_plain(10, residual=request.param, **OPTIONS)
    with torch.no_grad():  # scales and shifts of fresh norms would hide a mistake in their order
        for module in ours.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.2, 0.2)
    plain.load_state_dict(ours.state_dict(), strict=True)
    return ours, plain


def test_mobilenet_v1_plain_has_no_layer_of_ours():
    model = mobilenet_v1_plain(10, **OPTIONS)
    ours = (dwsep.nn.DepthwiseConv2d, dwsep.nn.DepthwiseSeparableConv2d)
    assert not any(isinstance(module, ours) for module in model.modules())


def test_mobilenet_v1_plain_shares_weights_both_ways(twins):
    ours, plain = twins
    assert list(ours.state_dict()) == list(plain.state_dict())
    fresh = mobilenet_v1(10, **OPTIONS)
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), ours.state_dict().values(), strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mobilenet_v1_plain_trains_the_same(twins, memory_format):
    # Float64: batch norm of near-constant channels would magnify float32's rounding in the gradients.
    ours, plain = (model.double().to(memory_format=memory_format) for model in twins)
    x = torch.randn(8, 1, 28, 28, dtype=torch.float64).contiguous(memory_format=memory_format)
    labels = torch.arange(8)
    for model in (ours, plain):
        nn.functional.cross_entropy(model(x), labels).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    for (name, a), b in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_mobilenet_v1_plain_gives_the_same_logits(twins, memory_format, training):
    ours, plain = (model.to(memory_format=memory_format).train(training) for model in twins)
    x = torch.randn(16, 1, 28, 28).contiguous(memory_format=memory_format)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=1e-5)
