"""Training on stages on a GPU: a step in float32 and under autocast against the same step in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dwsep
from dwsep import functional
from dwsep.accelerate import _training
from tests.accelerate.toys import Net, randomise

pytestmark = pytest.mark.skipif(
    not dwsep.backends()["triton"].available, reason="; ".join(dwsep.backends()["triton"].reasons)
)


@pytest.fixture(autouse=True, params=[True, False], ids=["segments", "single"])
def _stages_on_the_gpu(monkeypatch, request):
    monkeypatch.setattr(_training, "ON_CUDA", True)
    monkeypatch.setattr(_training, "SEGMENTS", request.param)


@pytest.fixture(name="runs")
def _runs(monkeypatch):
    """How often a program has trained on stages."""
    calls = []
    plain = _training.run
    monkeypatch.setattr(_training, "run", lambda program, *rest: calls.append(program) or plain(program, *rest))
    return calls


def step(net: nn.Module, x: torch.Tensor, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics of one step, under autocast to a dtype or without."""
    net.zero_grad()
    with torch.autocast("cuda", dtype or torch.float32, enabled=dtype is not None):
        out = net(x)
    out.double().square().mean().backward()
    found = {"output": out.detach()}
    found |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return found | {name: b.clone() for name, b in net.named_buffers() if b.is_floating_point()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_step_is_no_further_from_float64_than_eager(activation, gate, dtype, runs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    net = randomise(Net(activation, gate)).cuda()
    x = torch.randn(4, 3, 40, 48, device="cuda").to(memory_format=torch.channels_last)
    truth = step(copy.deepcopy(net).double(), x.double(), None)
    eager = step(copy.deepcopy(net), x, dtype)
    dwsep.accelerate_(net)
    ours = step(net, x, dtype)
    assert len(runs) == 1
    assert ours.keys() == eager.keys()
    for name, expected in truth.items():
        assert ours[name].dtype is eager[name].dtype, name
        distances = [
            ((found[name].double() - expected).norm() / (expected.norm() + 1e-6)).item() for found in (ours, eager)
        ]
        assert distances[0] <= 2 * distances[1] + (1e-5 if dtype is None else 4 * torch.finfo(dtype).eps), name


def test_stages_are_off_unless_asked_for(runs, monkeypatch):
    monkeypatch.setattr(_training, "ON_CUDA", False)
    net = randomise(Net()).cuda()
    dwsep.accelerate_(net)
    net(torch.randn(2, 3, 20, 24, device="cuda")).sum().backward()
    assert not runs


def test_a_step_is_captured_as_a_graph(runs):
    torch.manual_seed(0)
    net = randomise(Net()).cuda()
    dwsep.accelerate_(net)
    x = torch.randn(2, 3, 20, 24, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            net.zero_grad()
            net(x).sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x).sum().backward()
    graph.replay()
    found = [p.grad for p in net.parameters() if p.grad is not None]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_depthwise_convolution_alone_trains_on_our_kernels(dtype, monkeypatch):
    conv = nn.Conv2d(8, 8, 7, padding=3, groups=8).cuda()
    reference = copy.deepcopy(conv)
    dwsep.accelerate_(conv)
    ran, plain = [], functional.depthwise_conv
    monkeypatch.setattr(functional, "depthwise_conv", lambda *rest: ran.append(rest) or plain(*rest))
    x = torch.randn(2, 8, 20, 20, device="cuda").to(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype or torch.float32, enabled=dtype is not None):
        ours, theirs = conv(x), reference(x)
    assert ran
    assert ours.dtype is theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        ran.clear()
        conv(x)
    assert not ran
