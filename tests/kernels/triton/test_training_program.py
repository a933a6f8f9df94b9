"""A network's training program with every stage on the implementation for GPUs, against the same on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dwsep
from dwsep.kernels.triton import support
from dwsep.ops import training_program
from dwsep.ops._stage_cuda import IMPLEMENTATIONS
from tests.accelerate.toys import Net, randomise

pytest.importorskip("triton", reason="Triton is for Linux")
from dwsep.kernels.triton import mixed_stage, pointwise, stage_passes


@pytest.fixture(autouse=True)
def _machine_that_can(monkeypatch):
    monkeypatch.setattr(support, "_PACKAGE_REASONS", ())
    monkeypatch.setattr(support, "_capability_reasons", lambda device: ())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(pointwise, "_precision", lambda x: "ieee")
    ours = SimpleNamespace(**IMPLEMENTATIONS)
    for module, name in ((training_program, "ops"), (stage_passes, "ops"), (mixed_stage, "_ops")):
        monkeypatch.setattr(module, name, ours)


def recorded(net: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[list, list]:
    """The arguments of the program's two operators in one step of an accelerated network."""
    calls: dict[str, list] = {}
    forward, backward = torch.ops.dwsep.training_program, torch.ops.dwsep.training_program_backward

    def clone(value):
        if isinstance(value, torch.Tensor):
            return value.detach().clone(memory_format=torch.preserve_format)
        return [clone(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    def watch(name, operator):
        def call(*arguments):
            calls[name] = clone(arguments)
            return operator(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.dwsep, "training_program", watch("forward", forward))
        patch.setattr(torch.ops.dwsep, "training_program_backward", watch("backward", backward))
        net(x).square().sum().backward()
    return calls["forward"], calls["backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("activation", "gate"), [(nn.ReLU6, False), (nn.SiLU, True)])
def test_step(activation, gate, dtype, monkeypatch):
    if not torch._C._dispatch_has_kernel_for_dispatch_key("dwsep::pointwise_stage", "CPU"):
        pytest.skip("networks train on stages with the native library alone")
    torch.manual_seed(0)
    net = randomise(Net(activation, gate))
    dwsep.accelerate_(net)
    forward, backward = recorded(net, torch.randn(2, 3, 12, 10), monkeypatch)

    def low(tensors):
        """Images in the type of the raw tensors; what belongs to channels stays as it is."""
        return [t.to(dtype) if t.dim() == 4 or (t.dim() == 2 and t.dtype is torch.float32) else t for t in tensors]

    inputs, parameters, running, *rest = forward
    expected = torch.ops.dwsep.training_program(inputs, parameters, [r.clone() for r in running], *rest)
    found = training_program._forward(low(inputs), parameters, running, *rest)
    bound = 1e-4 if dtype is torch.float32 else 0.05
    compare(found, expected, bound)
    grads, inputs, parameters, made, *rest = backward
    expected = torch.ops.dwsep.training_program_backward(grads, inputs, parameters, made, *rest)
    found = training_program._backward(low(grads), low(inputs), parameters, low(made), *rest)
    compare(found, expected, bound)
    assert all(grad.dtype is p.dtype for grad, p in zip(found[len(inputs) :], parameters, strict=True) if grad.numel())


def compare(found, expected, bound):
    """Each float32 tensor for itself; of rounded ones, whose small sums are rounding alone, all in one norm."""
    assert len(found) == len(expected)
    apart, size = [], []
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        apart.append((got.double() - want.double()).norm())
        size.append(want.double().norm())
        if bound < 1e-3:
            assert apart[-1] <= bound * (size[-1] + 1e-2)
    assert torch.stack(apart).norm() <= bound * torch.stack(size).norm()
