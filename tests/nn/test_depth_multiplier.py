"""Several outputs per input channel, at inference, where the layer hands its operator each channel as many times."""

from __future__ import annotations

import pytest
import torch

import dwsep
from dwsep.kernels import reference


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [2, 3, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inference_has_the_operators_bits(axes, multiplier, channels_last):
    layer = getattr(dwsep.nn, f"DepthwiseSeparableConv{axes}d")(
        6, 7, 3, 2, dilation=2, depth_multiplier=multiplier, inner_activation="relu", activation="silu"
    ).eval()
    x = torch.randn(2, 6, *(9, 8, 7)[:axes])
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.no_grad():
        out = layer(x)
    whole = getattr(dwsep.functional, f"depthwise_separable_conv{axes}d")(
        x, layer.depthwise.weight, layer.pointwise.weight, layer.depthwise.bias, layer.pointwise.bias,
        stride=2, dilation=2, inner_activation="relu", activation="silu",
    )  # fmt: skip
    assert torch.equal(out, whole)
    assert out.stride() == whole.stride()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_have_the_same_bits_and_gradients(axes, dtype):
    layer = getattr(dwsep.nn, f"DepthwiseConv{axes}d")(
        6, 3, 2, "same", depth_multiplier=3, activation="silu", dtype=dtype
    )
    x = torch.randn(2, 6, *(9, 8, 7)[:axes], dtype=dtype)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if dwsep.ops.native_status().loaded:
        with torch.no_grad():
            assert torch.equal(layer(x), layer(last))
    results = []
    for one in (x, last):
        one.requires_grad_()
        out = layer(one)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), [one, *layer.parameters()])))
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("residual, out_channels", [("input", 6), ("depthwise", 12)])
def test_residuals_with_a_multiplier(residual, out_channels):
    layer = dwsep.nn.DepthwiseSeparableConv2d(6, out_channels, depth_multiplier=2, residual=residual).eval()
    x = torch.randn(2, 6, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer._composed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layer", [
    dwsep.nn.DepthwiseSeparableConv2d(6, 7, depth_multiplier=2).eval(),
    dwsep.nn.DepthwiseSeparableConv2d(6, 7, order="pointwise_first").eval(),
    dwsep.nn.DepthwiseConv2d(6, 3),
])  # fmt: skip
def test_a_divisor_of_the_channels_is_no_other_multiplier(layer, grad):
    with torch.set_grad_enabled(grad):
        layer(torch.ones(1, 6, 5, 5))
        for shape in ((1, 3, 5, 5), (1, 12, 5, 5), (3, 5, 5)):
            with pytest.raises((dwsep.ArgumentError, RuntimeError), match="channels"):
                layer(torch.ones(shape))


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="the copy is the native operator's")
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_channels_last_are_exact_on_integers(axes, multiplier, dtype):
    """Of small integers every sum is exact, also that over an input channel's outputs."""
    generator = torch.Generator().manual_seed(multiplier)

    def draw(*shape):
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    x = draw(2, 6, *(9, 8, 7)[:axes]).movedim(1, -1).contiguous().movedim(-1, 1)
    weight, bias = draw(6 * multiplier, 1, *(3,) * axes), draw(6 * multiplier)
    geometry = [2] * axes, [1, 2] * axes, [1] * axes
    grad = draw(*torch.ops.dwsep.depthwise_conv(x, weight, bias, *geometry, "none").shape)
    for mask in ([True] * 3, [True, False, False], [False, True, True]):
        actual = torch.ops.dwsep.depthwise_conv_backward(grad, x, weight, bias, *geometry, "none", mask)
        expected = reference.depthwise_conv_backward(
            *(tensor.double() for tensor in (grad, x, weight, bias)), *geometry, "none", mask
        )
        for a, e, wanted in zip(actual, expected, mask, strict=True):
            if wanted:
                assert torch.equal(a, e.to(dtype))
        assert actual[0].stride() == (x.stride() if mask[0] else (1,))
