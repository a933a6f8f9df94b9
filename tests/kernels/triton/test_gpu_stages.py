"""What only a GPU can show of the stages: the operators as a training step calls them there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import dwsep
from tests.problems import last

pytestmark = pytest.mark.skipif(
    not dwsep.backends()["triton"].available, reason="; ".join(dwsep.backends()["triton"].reasons)
)
ops = torch.ops.dwsep
CONVOLUTIONS = torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def _without_tf32():
    before, CONVOLUTIONS.fp32_precision = CONVOLUTIONS.fp32_precision, "ieee"
    yield
    CONVOLUTIONS.fp32_precision = before


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the GPU; channels innermost."""
    drawn = torch.randn(shape, device="cuda").to(dtype)
    return last(drawn) if len(shape) > 2 else drawn


# Channels, outputs and pixels of an image: layers of real networks.
LAYERS = ((16, 96, 56), (144, 24, 28), (192, 64, 14), (576, 96, 14), (160, 960, 7), (320, 1280, 7), (40, 240, 28))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels, outputs, size", LAYERS)
def test_pointwise_norm_and_output_equal_torch(channels, outputs, size, dtype):
    x, weight = draw(16, channels, size, size, dtype=dtype), draw(outputs, channels, 1, 1) / channels**0.5
    scale, shift = torch.rand(channels, device="cuda") + 0.5, draw(channels)
    norm_weight, norm_bias = torch.rand(outputs, device="cuda") + 0.5, draw(outputs)
    running = [torch.zeros(outputs, device="cuda"), torch.ones(outputs, device="cuda")]
    grad = draw(16, outputs, size, size, dtype=dtype)

    leaves = [t.double().requires_grad_() for t in (x, scale, shift, weight, norm_weight, norm_bias)]
    wide, *vectors = leaves
    z = F.silu(wide * vectors[0][:, None, None] + vectors[1][:, None, None])
    wide_running = [tensor.double() for tensor in running]
    expected = F.batch_norm(F.conv2d(z, vectors[2]), *wide_running, *vectors[3:], True, 0.1, 1e-5)
    expected_grads = torch.autograd.grad(F.silu(expected), leaves, grad.double())

    y, sums = ops.pointwise_stage(x, scale, shift, "silu", weight, None)
    count = y.numel() // outputs
    after = ops.stage_statistics(sums, count, norm_weight, norm_bias, 1e-5, 0.1, *running)
    out = ops.stage_output(y, *after[:2], "silu", None)
    grad_y, affine = ops.stage_output_backward(grad, y, *after[:2], "silu")
    correction, *norm_grads = ops.stage_correction(affine, *after[2:], norm_weight, count)
    mask = [True, True]
    grad_x, affine, grad_weight, _ = ops.pointwise_stage_backward(
        grad_y, y, correction, x, scale, shift, "silu", weight, False, mask
    )
    unit = 4e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    found = out, grad_x, *affine, grad_weight, *norm_grads, *running
    for got, want in zip(found, (F.silu(expected), *expected_grads, *wide_running), strict=True):
        assert (got.double() - want).norm() <= unit * (want.norm() + 1), (got.double() - want).norm() / want.norm()
    # The weight's and the input's gradients in two passes, as where only one of them is wanted.
    for mask, position in (([True, False], 0), ([False, True], 2)):
        alone = ops.pointwise_stage_backward(grad_y, y, correction, x, scale, shift, "silu", weight, False, mask)
        distance = (alone[position].double() - (grad_x, None, grad_weight)[position].double()).norm()
        assert distance <= unit * (grad_x, None, grad_weight)[position].double().norm()


def test_tf32_only_where_convolutions_take_it():
    x, weight = draw(4, 128, 14, 14), draw(64, 128, 1, 1)
    expected = F.conv2d(x.double(), weight.double())
    errors = []
    for precision in ("ieee", "tf32"):
        CONVOLUTIONS.fp32_precision = precision
        y, _ = ops.pointwise_stage(x, None, None, "none", weight, None)
        errors.append(((y.double() - expected).norm() / expected.norm()).item())
    assert errors[0] < 1e-6
    assert errors[0] < errors[1] < 1e-3 or torch.cuda.get_device_capability() < (8, 0)


@pytest.mark.parametrize("affine", [True, False])
def test_opcheck(affine):
    x, gate = draw(2, 20, 6, 5), draw(2, 20)
    scale, shift = (draw(20), draw(20)) if affine else (None, None)
    load, weight, grad = (x, scale, shift, "relu6"), draw(7, 20, 1, 1), draw(2, 7, 6, 5)
    opcheck(ops.pointwise_stage, (*load, weight, draw(7)))
    for correction, mask in ((draw(2, 7), [True, True]), (None, [False, True]), (None, [True, False])):
        opcheck(ops.pointwise_stage_backward, (grad, grad, correction, *load, weight, True, mask))
    opcheck(ops.stage_output, (*load, x))
    opcheck(ops.stage_output_backward, (x, *load))
    opcheck(ops.stage_pool, load)
    opcheck(ops.stage_gate, (*load, gate))
    opcheck(ops.stage_gate_gradient, (x, *load))
    opcheck(ops.stage_squeeze_backward, (x, gate, gate, *load))
    sums = torch.stack([draw(9), draw(9).abs() + 40]).double()
    opcheck(ops.stage_statistics, (sums, 30, draw(9), draw(9), 1e-5, 0.1, draw(9), draw(9).abs()))
    opcheck(ops.stage_correction, (draw(2, 9).double(), draw(9), draw(9).abs(), draw(9), 30))
    opcheck(ops.stage_sums, (x,))
    opcheck(ops.stage_corrected, (draw(2, 20, 6, 5), x, draw(2, 20)))


def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free GPU memory")
    size, kept = 11_600, 64
    x = torch.randint(-1, 2, (1, 16, size, size), dtype=torch.int8, device="cuda").to(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randint(-1, 2, (24, 16, 1, 1), device="cuda").to(torch.bfloat16)
    assert x.numel() > 2**31
    y, _ = ops.pointwise_stage(x, None, None, "relu", weight, None)
    end = x[:, :, -kept:, -kept:].double()
    assert torch.equal(y[:, :, -kept:, -kept:].double(), F.conv2d(end.relu(), weight.double()))
    grad_x, _, grad_weight, _ = ops.pointwise_stage_backward(
        y, y, None, x, None, None, "relu", weight, False, [True, True]
    )
    last_y = y[:, :, -kept:, -kept:].double()
    expected = F.conv_transpose2d(last_y, weight.double()) * (end > 0)
    assert torch.equal(grad_x[:, :, -kept:, -kept:], expected.to(torch.bfloat16))
    assert grad_weight.isfinite().all()
