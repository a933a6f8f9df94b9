"""What only a GPU can show: the operators as users call them there."""

from __future__ import annotations

import pytest
import torch

import dwsep
from dwsep import dispatch
from dwsep.functional import depthwise_conv1d, depthwise_conv2d, depthwise_separable_conv2d
from dwsep.geometry import ConvGeometry
from dwsep.kernels import reference, stage_reference
from tests.problems import last

pytestmark = pytest.mark.skipif(
    not dwsep.backends()["triton"].available, reason="; ".join(dwsep.backends()["triton"].reasons)
)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers on the GPU."""
    return torch.randn(*shape, device="cuda").to(dtype)


def test_dispatch_chooses_triton():
    geometry = ConvGeometry.make(2, 5, padding="same")
    assert dispatch.select("depthwise_conv", geometry, torch.bfloat16, "cuda", "triton").backend == "triton"
    assert dispatch.select("depthwise_conv", geometry, torch.float64, "cuda").backend == "reference"
    volume = ConvGeometry.make(3, 3, padding="same")
    assert dispatch.select("depthwise_conv", volume, torch.float32, "cuda").backend == "reference"
    with pytest.raises(NotImplementedError, match="3 spatial axes"):
        dispatch.select("depthwise_conv", volume, torch.float32, "cuda", "triton")


@pytest.mark.parametrize("channels_last", [True, False])
def test_function_and_gradients_of_both_orders(channels_last):
    x, weight, bias = draw(2, 6, 9, 8), draw(6, 1, 3, 3), draw(6)
    x = last(x) if channels_last else x
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    results = []
    for backend in ("triton", "reference"):
        y = depthwise_conv2d(*inputs, padding=1, stride=2, activation="silu", backend=backend)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)
        plain = torch.autograd.grad(depthwise_conv2d(*inputs, padding=1, stride=2, backend=backend).sum(), inputs)
        results.append((y, *first, *second, *plain))
        assert y.is_contiguous(memory_format=torch.channels_last) or not channels_last
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    x, weight = draw(2, 16, 20, dtype=dtype), draw(16, 1, 31, dtype=dtype)
    y = depthwise_conv1d(x, weight, padding=15, backend="triton")
    expected = depthwise_conv1d(x.double(), weight.double(), padding=15)
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-4
    assert ((y.double() - expected).abs() <= bound).all()


def test_autocast():
    x, weight = draw(2, 8, 12, 12).requires_grad_(), draw(8, 1, 3, 3).requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = depthwise_conv2d(x, weight, padding=1, backend="triton")
    assert y.dtype == torch.bfloat16
    expected = depthwise_conv2d(x.bfloat16(), weight.bfloat16(), padding=1, backend="triton")
    assert torch.equal(y, expected)
    grads = torch.autograd.grad(y.float().sum(), (x, weight))
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("channels_last", [True, False])
def test_operator_passes_opcheck(channels_last):
    x = last(draw(2, 4, 8, 8)) if channels_last else draw(2, 4, 8, 8)
    inputs = x.requires_grad_(), draw(4, 1, 3, 3).requires_grad_(), draw(4).requires_grad_()
    torch.library.opcheck(
        torch.ops.dwsep.depthwise_conv.default, (*inputs, [1, 1], [1, 1, 1, 1], [1, 1], "relu"), raise_exception=True
    )


def test_compiles_without_a_break():
    x, weight = last(draw(2, 8, 12, 12)).requires_grad_(), draw(8, 1, 5, 5).requires_grad_()

    def step(x, weight):
        return depthwise_conv2d(x, weight, padding=2, activation="relu", backend="triton").square()

    compiled = torch.compile(step, fullgraph=True)
    results = [(y, *torch.autograd.grad(y.sum(), (x, weight))) for y in (step(x, weight), compiled(x, weight))]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_vmap_over_the_batch():
    x, weight = draw(3, 2, 4, 8, 8), draw(4, 1, 3, 3)
    mapped = torch.vmap(lambda x: depthwise_conv2d(x, weight, padding=1, backend="triton"))(x)
    for one, other in zip(mapped, x, strict=True):
        assert torch.equal(one, depthwise_conv2d(other, weight, padding=1, backend="triton"))


@pytest.mark.parametrize("channels_last", [True, False])
def test_more_than_2_31_elements(channels_last):
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free GPU memory")
    channels, size, kept = 16, 11_600, 64
    x = torch.randint(-2, 3, (1, channels, size, size), dtype=torch.int8, device="cuda").to(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    weight = torch.randint(-2, 3, (channels, 1, 3, 3), device="cuda").to(torch.bfloat16)
    assert x.numel() > 2**31
    geometry = [1, 1], [1, 1, 1, 1], [1, 1]
    y = torch.ops.dwsep.depthwise_conv(x, weight, None, *geometry, "none")
    end = x[:, :, -kept - 1 :, -kept - 1 :]
    expected = reference.depthwise_conv(end.double(), weight.double(), None, *geometry, "none")
    assert torch.equal(y[:, :, -kept:, -kept:].double(), expected[:, :, -kept:, -kept:])
    grad = torch.zeros_like(y)
    grad[:, :, -1, -1] = 1
    grad_x, grad_weight, _ = torch.ops.dwsep.depthwise_conv_backward(
        grad, x, weight, None, *geometry, "none", [True, True, False]
    )
    corner = torch.zeros(1, channels, 1, 1, dtype=torch.float64, device="cuda") + 1
    assert torch.equal(grad_x[:, :, -2:, -2:].double(), (corner * weight[:, 0, :2, :2].double())[:, :])
    assert torch.equal(grad_weight[:, 0, :2, :2].double(), x[0, :, -2:, -2:].double())


STAGES = [  # channels, size, kernel, stride, dilation, activation
    (144, (56, 56), (3, 3), 1, 1, "relu6"),
    (96, (57, 55), (3, 3), 2, 1, "silu"),
    (72, (28, 28), (5, 5), 2, 1, "hardswish"),
    (672, (14, 14), (5, 5), 1, 1, "silu"),
    (96, (28, 28), (7, 7), 1, 1, "gelu"),
    (256, (33, 33), (3, 3), 1, 6, "relu"),
    (64, (1000,), (9,), 1, 2, "none"),
]


@pytest.mark.parametrize("channels, size, kernel, stride, dilation, activation", STAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_depthwise_stages_equal_the_reference(channels, size, kernel, stride, dilation, activation, dtype):
    x, weight, bias = last(draw(4, channels, *size, dtype=dtype)), draw(channels, 1, *kernel), draw(channels)
    scale, shift, correction = 1 + draw(channels) / 8, draw(channels), draw(2, channels) / 8
    pads = [side for k in kernel for side in [dilation * (k - 1) // 2] * 2]
    geometry = [stride] * len(size), pads, [dilation] * len(size)
    y, sums = torch.ops.dwsep.depthwise_stage(x, scale, shift, activation, weight, bias, *geometry)
    grad = last(torch.randn_like(y.float()).to(dtype))
    arguments = grad, y, correction, x, scale, shift, activation, weight, True, *geometry, [True, True]
    found = torch.ops.dwsep.depthwise_stage_backward(*arguments)
    again = torch.ops.dwsep.depthwise_stage_backward(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    x, scale, shift, weight, bias, grad, correction = (
        tensor.double() for tensor in (x, scale, shift, weight, bias, grad, correction)
    )
    wanted, _ = stage_reference.stage(x, scale, shift, activation, weight, bias, geometry)
    load = x, scale, shift, activation, weight, True, geometry, [True, True]
    gradients = stage_reference.stage_backward(grad, y.double(), correction, *load)
    results = zip((y, sums, *found), (wanted, stage_reference.sums_of(y), *gradients), strict=True)
    for position, (got, want) in enumerate(results):
        stored = torch.finfo(torch.float32 if position in (1, 3, 4, 5) else dtype).eps
        # A pass of its own rounds what it activates; sums of thousands of float32 terms are within 1e-4 of their size.
        bound = stored * want.abs() + (1e-4 + torch.finfo(dtype).eps) * want.abs().mean()
        assert ((got.double() - want).abs() <= 4 * bound).all(), position


def test_stage_statistics_keep_the_variance_of_large_means():
    x, weight = last(1000 + 0.01 * draw(8, 32, 64, 64)), torch.ones(32, 1, 1, 1, device="cuda")
    y, sums = torch.ops.dwsep.depthwise_stage(x, None, None, "none", weight, None, [1, 1], [0] * 4, [1, 1])
    count = y.numel() // 32
    variance = sums[1] / count - (sums[0] / count).square()
    wanted = y.double().movedim(1, 0).flatten(1).var(1, correction=0)
    torch.testing.assert_close(variance, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("outputs", [24, 160, 320])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tf32", [True, False])
def test_separable_equals_the_reference(outputs, dtype, tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    x = last(draw(4, 96, 28, 27, dtype=dtype))
    tensors = x, draw(96, 1, 5, 5, dtype=dtype), draw(outputs, 96, 1, 1, dtype=dtype), draw(96, dtype=dtype), None
    rest = [1, 1], [2] * 4, [1, 1], "relu", "relu6", "none"
    out = torch.ops.dwsep.separable_conv(*tensors, *rest)
    wide = [None if tensor is None else tensor.double() for tensor in tensors]
    wanted = reference.separable_conv(*wide, *rest)
    magnitude = reference.separable_conv(*(None if t is None else t.abs() for t in wide), *rest[:3], *["none"] * 3)
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else (2.0**-10 if tf32 else 2.0**-18)
    assert ((out.double() - wanted).abs() <= 2 * eps * magnitude).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_separable_gradients(channels_last, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = last(draw(2, 6, 9, 8)) if channels_last else draw(2, 6, 9, 8)
    inputs = [t.requires_grad_() for t in (x, draw(6, 1, 5, 5), draw(7, 6, 1, 1), draw(6), draw(7))]
    results = []
    for backend in ("triton", "reference"):
        y = depthwise_separable_conv2d(*inputs, padding=2, inner_activation="silu", activation="relu", backend=backend)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
