"""opcheck on every operator and layout; gradients against the references in float64; layouts of fake kernels."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import dwsep
from dwsep.ops._layout import empty_output, is_channels_last
from tests import isas

ops = torch.ops.dwsep
GEOMETRY_2D = ([2, 1], [1, 1, 0, 2], [1, 2])

# torch's own check reads .grad of non-leaf tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def make(shape, layout, *, dtype=torch.float32, grad=True):
    x = torch.randn(shape, dtype=dtype)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "sliced":
        x = torch.randn((*shape[:-1], 2 * shape[-1]), dtype=dtype)[..., ::2]
    elif layout == "expanded":
        x = x[:1].expand(shape)
    return x.detach().requires_grad_(grad)


LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("biases", [True, False])
def test_separable_conv_opcheck(layout, biases):
    x = make((2, 8, 6, 7), layout)
    depthwise, pointwise = make((16, 1, 3, 3), "contiguous"), make((5, 16, 1, 1), "contiguous")
    bias, pointwise_bias = (make((16,), ""), make((5,), "")) if biases else (None, None)
    arguments = (x, depthwise, pointwise, bias, pointwise_bias, *GEOMETRY_2D, "relu", "gelu", "none")
    opcheck(ops.separable_conv, arguments)
    grad = torch.randn_like(ops.separable_conv(*arguments)).detach()
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    for mask in ([True] * 5, [True, False, True, False, True], [False, True, False, True, False]):
        opcheck(ops.separable_conv_backward, (grad, *detached, mask))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_depthwise_conv_opcheck(layout, axes):
    x, weight = make((2, 6, *(7, 5, 6)[:axes]), layout), make((12, 1, *(3,) * axes), "contiguous")
    arguments = (x, weight, make((12,), ""), [2] * axes, [1, 2] * axes, [1] * axes, "silu")
    opcheck(ops.depthwise_conv, arguments)
    grad = torch.randn_like(ops.depthwise_conv(*arguments)).detach()
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    opcheck(ops.depthwise_conv_backward, (grad, *detached, [True, True, True]))
    opcheck(ops.depthwise_conv_backward, (grad, *detached, [False, True, False]))


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_separable_conv_opcheck_other_ranks(axes, layout):
    x = make((2, 4, *(7, 5, 6)[:axes]), layout)
    arguments = (
        x, make((4, 1, *(3,) * axes), ""), make((9, 4, *(1,) * axes), ""), None, None,
        [1] * axes, [1, 1] * axes, [1] * axes, "none", "relu", "none",
    )  # fmt: skip
    opcheck(ops.separable_conv, arguments)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
@pytest.mark.parametrize("padding", [[1, 1, 1, 1], [-1, 2, 0, 3], [2, -1, -1, 0]])
def test_backward_references_match_autograd(activation, padding):
    """The backward references' formulas in float64 against torch's own derivative of the reference's forward."""
    reference = dwsep.kernels.reference
    x, depthwise, _, bias, _ = tensors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 8, 7), (6, 1, 3, 2), (4, 6, 1, 1), (6,), (4,))
    ]
    geometry = ([2, 1], padding, [1, 2])
    out = reference.separable_conv(*tensors, *geometry, activation, activation, "none")
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, tensors, grad)
    actual = reference.separable_conv_backward(grad, *(t.detach() for t in tensors), *geometry, activation, activation,
                                               "none", [True] * 5)  # fmt: skip
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    out = reference.depthwise_conv(x, depthwise, bias, *geometry, activation)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, (x, depthwise, bias), grad)
    actual = reference.depthwise_conv_backward(
        grad, x.detach(), depthwise.detach(), bias.detach(), *geometry, activation, [True] * 3
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_operator_gradients_match_the_reference_in_float32():
    tensors = [make(s, "channels_last" if len(s) == 4 else "") for s in ((2, 8, 9, 9), (8, 1, 3, 3), (8, 8, 1, 1))]
    arguments = (None, None, [1, 1], [1] * 4, [1, 1], "relu", "silu", "input")
    out = ops.separable_conv(*tensors, *arguments)
    grads = torch.autograd.grad(out.square().sum(), tensors)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected = dwsep.kernels.reference.separable_conv(*doubles, *arguments)
    for a, e in zip(grads, torch.autograd.grad(expected.square().sum(), doubles), strict=True):
        # An element may be a small difference of large terms: it is as exact as they are.
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=4e-6 * float(e.abs().max()))


@pytest.mark.parametrize("inner, outer", [("silu", "gelu"), ("hardswish", "silu"), ("gelu", "relu6")])
def test_operator_is_differentiable_twice(inner, outer):
    tensors = [make(s, "") for s in ((1, 4, 5, 5), (4, 1, 3, 3), (4, 4, 1, 1))]

    def penalty(function, inputs):
        out = function(*inputs, None, None, [1, 1], [1] * 4, [1, 1], inner, outer, "depthwise")
        (grad,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), inputs)

    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected = penalty(dwsep.kernels.reference.separable_conv, doubles)
    for a, e in zip(penalty(ops.separable_conv, tensors), expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 4, 5), (2, 3, 1, 1), (0, 3, 4, 5), (2, 3, 7), (1, 2, 3, 4, 5)])
def test_empty_output_has_the_strides_of_the_native_kernel(shape):
    for channels_last in (False, True):
        x = torch.randn(shape)
        if channels_last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        axes = len(shape) - 2
        weight = torch.randn(shape[1], 1, *(1,) * axes)
        out = ops.depthwise_conv(x, weight, None, [1] * axes, [0] * 2 * axes, [1] * axes, "none")
        assert out.stride() == empty_output(x, out.shape).stride()
        if channels_last and x.numel() and not x.is_contiguous():
            assert is_channels_last(out)


def test_autocast_computes_and_returns_bfloat16():
    x, depthwise, pointwise = make((1, 8, 6, 6), ""), make((8, 1, 3, 3), ""), make((4, 8, 1, 1), "")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        direct = ops.separable_conv(
            x, depthwise, pointwise, None, None, [1, 1], [1] * 4, [1, 1], "none", "none", "none"
        )
        through = dwsep.functional.depthwise_separable_conv2d(x, depthwise, pointwise)
    assert direct.dtype == through.dtype == torch.bfloat16
    through.sum().backward()
    assert depthwise.grad is not None
    assert depthwise.grad.dtype == torch.float32


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="packed weights are the native library's")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "multiplier", "outputs", "residual"),
    [(6, 2, 21, "none"), (16, 3, 21, "none"), (30, 2, 60, "depthwise")],
)
def test_packed_weights_give_the_same_bits(layout, dtype, channels, multiplier, outputs, residual):
    x = make((2, channels, 7, 9), layout, dtype=dtype, grad=False)
    inner, k = channels * multiplier, outputs
    weights = [make(s, "", dtype=dtype, grad=False) for s in ((inner, 1, 3, 2), (k, inner, 1, 1), (inner,), (k,))]
    order = 1 if residual == "depthwise" else multiplier
    opcheck(ops.pack_separable_weights, (*weights, order))
    packed = ops.pack_separable_weights(*weights, order)
    rest = (*GEOMETRY_2D, "relu", "silu", residual)
    arguments = (x, packed, inner, k, [3, 2], *rest)
    opcheck(ops.separable_conv_packed, arguments)
    assert torch.equal(ops.separable_conv_packed(*arguments), ops.separable_conv(x, *weights, *rest))
    with pytest.raises(RuntimeError, match="packed must be what"):
        ops.separable_conv_packed(x, packed[1:], inner, k, [3, 2], *rest)
    with pytest.raises(RuntimeError, match="depth_multiplier must divide"):
        ops.pack_separable_weights(*weights, inner - 1)


@pytest.mark.skipif(not dwsep.ops.native_status().loaded, reason="packed weights are the native library's")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_weights_of_bfloat16_products(layout):
    x = make((2, 6, 7, 9), layout, grad=False)
    weights = [make(s, "", grad=False) for s in ((12, 1, 3, 2), (21, 12, 1, 1), (12,), (21,))]
    weights[1] = weights[1].bfloat16().float()
    opcheck(ops.pack_separable_weights, (*weights, 2, True))
    packed = ops.pack_separable_weights(*weights, 2, True)
    rest = (*GEOMETRY_2D, "relu", "silu", "none")
    opcheck(ops.separable_conv_packed, (x, packed, 12, 21, [3, 2], *rest, True))
    got, wanted = (
        ops.separable_conv_packed(x, packed, 12, 21, [3, 2], *rest, True),
        ops.separable_conv(x, *weights, *rest),
    )
    assert got.dtype == torch.float32
    assert (got - wanted).norm() <= 5e-3 * wanted.norm()
    if dwsep.ops.native_status().isa in isas.BFLOAT16:
        assert not torch.equal(got, wanted)
