"""The stage operators: opcheck, and a chain of them against the same network of torch modules in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import dwsep  # noqa: F401  (defines the operators)
from tests.problems import last

ops = torch.ops.dwsep
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_opcheck(affine, bias):
    x = last(draw(2, 20, 6, 5))
    scale, shift = (draw(20), draw(20)) if affine else (None, None)
    geometry = ([2, 1], [1, 1, 0, 2], [1, 1])
    for name, weight, rest in (
        ("pointwise_stage", draw(7, 20, 1, 1), ()),
        ("depthwise_stage", draw(20, 1, 3, 3), geometry),
    ):
        forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
        arguments = (x, scale, shift, "relu6", weight, draw(weight.shape[0]) if bias else None, *rest)
        opcheck(forward, arguments)
        y, _ = forward(*arguments)
        grad = last(torch.randn_like(y))
        for correction, mask in (
            (draw(2, weight.shape[0]), [True, True]),
            (None, [False, True]),
            (None, [True, False]),
        ):
            opcheck(backward, (grad, y, correction, x, scale, shift, "relu6", weight, bias, *rest, mask))
    residual = last(torch.randn_like(x))
    opcheck(ops.stage_output, (x, scale, shift, "silu", residual))
    opcheck(ops.stage_output, (x, scale, shift, "none", None))
    # The sums are float64, of float32 values whose rounding depends on how PyTorch vectorises the activation.
    opcheck(ops.stage_output_backward, (residual, x, scale, shift, "silu"), rtol=1e-5, atol=1e-5)


def test_opcheck_of_squeeze_and_excite():
    x, gate = last(draw(2, 9, 5, 4)), draw(2, 9)
    for scale, shift in ((draw(9), draw(9)), (None, None)):
        opcheck(ops.stage_pool, (x, scale, shift, "relu"))
        opcheck(ops.stage_gate, (x, scale, shift, "silu", gate), rtol=1e-5, atol=1e-5)
        opcheck(ops.stage_gate_gradient, (x, x, scale, shift, "relu"))
        opcheck(ops.stage_squeeze_backward, (x, gate, gate, x, scale, shift, "relu"))
        opcheck(ops.stage_squeeze_backward, (None, None, gate, x, scale, shift, "relu"))


def test_opcheck_of_the_norm():
    sums = torch.stack([draw(9), draw(9).abs() + 40]).double()
    opcheck(ops.stage_statistics, (sums, 30, draw(9), draw(9), 1e-5, 0.1, draw(9), draw(9).abs()))
    opcheck(ops.stage_statistics, (sums, 30, None, None, 1e-5, 0.1, None, None))
    opcheck(ops.stage_correction, (draw(2, 9).double(), draw(9), draw(9).abs(), draw(9), 30))
    opcheck(ops.stage_correction, (draw(2, 9).double(), draw(9), draw(9).abs(), None, 30))
    x = last(draw(2, 9, 5, 4))
    opcheck(ops.stage_sums, (x,))
    opcheck(ops.stage_corrected, (last(draw(2, 9, 5, 4)), x, draw(2, 9)))


class _Norm:
    """A batch norm's parameters, and the operators' view of it."""

    def __init__(self, channels: int) -> None:
        self.weight = torch.rand(channels) + 0.5
        self.bias = draw(channels)
        self.running = [draw(channels), torch.rand(channels) + 0.5]

    def statistics(self, y, sums):
        count = y.numel() // y.shape[1]
        self.count = count
        scale, shift, self.mean, self.invstd = ops.stage_statistics(
            sums, count, self.weight, self.bias, 1e-5, 0.1, *self.running
        )
        return scale, shift

    def correction(self, grad_affine):
        return ops.stage_correction(grad_affine, self.mean, self.invstd, self.weight, self.count)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [16, 21, 40])
def test_inverted_residual_equals_torch(activation, stride, channels):
    torch.manual_seed(channels)
    inner, kernel = 2 * channels, 3
    geometry = ([stride] * 2, [1] * 4, [1] * 2)
    x = last(draw(3, channels, 9, 11))
    weights = [draw(inner, channels, 1, 1), draw(inner, 1, kernel, kernel), draw(channels, inner, 1, 1)]
    norms = [_Norm(inner), _Norm(inner), _Norm(channels)]

    expected_inputs = [
        t.double().requires_grad_() for t in (x, *weights, *(p for n in norms for p in (n.weight, n.bias)))
    ]
    wide, w1, w2, w3, *affine = expected_inputs
    running = [[t.double().clone() for t in n.running] for n in norms]
    act = ACTIVATIONS[activation]
    e = act(F.batch_norm(F.conv2d(wide, w1), *running[0], *affine[0:2], True, 0.1, 1e-5))
    d = F.conv2d(e, w2, stride=stride, padding=1, groups=inner)
    d = act(F.batch_norm(d, *running[1], *affine[2:4], True, 0.1, 1e-5))
    expected = F.batch_norm(F.conv2d(d, w3), *running[2], *affine[4:6], True, 0.1, 1e-5)
    expected = expected + wide if stride == 1 else expected
    grad = torch.randn_like(expected).float()
    expected_grads = torch.autograd.grad(expected, expected_inputs, grad.double())

    grad = last(grad)
    e_raw, sums = ops.pointwise_stage(x, None, None, "none", weights[0], None)
    a1 = norms[0].statistics(e_raw, sums)
    d_raw, sums = ops.depthwise_stage(e_raw, *a1, activation, weights[1], None, *geometry)
    a2 = norms[1].statistics(d_raw, sums)
    p_raw, sums = ops.pointwise_stage(d_raw, *a2, activation, weights[2], None)
    a3 = norms[2].statistics(p_raw, sums)
    out = ops.stage_output(p_raw, *a3, "none", x if stride == 1 else None)

    g_p, ga = ops.stage_output_backward(grad, p_raw, *a3, "none")
    correction, gw3, gb3 = norms[2].correction(ga)
    g_d, ga, dw3, _ = ops.pointwise_stage_backward(
        g_p, p_raw, correction, d_raw, *a2, activation, weights[2], False, [True, True]
    )
    correction, gw2, gb2 = norms[1].correction(ga)
    g_e, ga, dw2, _ = ops.depthwise_stage_backward(
        g_d, d_raw, correction, e_raw, *a1, activation, weights[1], False, *geometry, [True, True]
    )
    correction, gw1, gb1 = norms[0].correction(ga)
    g_x, _, dw1, _ = ops.pointwise_stage_backward(
        g_e, e_raw, correction, x, None, None, "none", weights[0], False, [True, True]
    )
    if stride == 1:
        g_x = g_x + grad

    def close(got, wanted, name):
        # Without an activation a norm's gradients are zeros but for rounding.
        distance = (got.double() - wanted).norm() / (wanted.norm() + 10)
        assert distance < 3e-6, f"{name}: {distance:.2e}"

    close(out, expected.detach(), "output")
    for i, norm in enumerate(norms):
        for got, wanted, name in zip(norm.running, running[i], ("mean", "var"), strict=True):
            close(got, wanted, f"running {name} {i}")
    found = (g_x, dw1, dw2, dw3, gw1, gb1, gw2, gb2, gw3, gb3)
    names = ["x", "w1", "w2", "w3", *(f"norm{i // 2}.{i % 2}" for i in range(2, 8))]
    for name, got, wanted in zip(names, found, expected_grads, strict=True):
        close(got, wanted, name)
