"""First and second derivatives in float64 against finite differences, through the public functions and the layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dwsep
from dwsep import functional


def make(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def check(call, tensors: list[Tensor]) -> None:
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("inner", ["none", "silu", "hardswish"])
@pytest.mark.parametrize("outer", ["none", "gelu"])
@pytest.mark.parametrize("residual", ["none", "input", "depthwise"])
def test_separable_conv2d(inner, outer, residual):
    tensors = make((2, 3, 5, 4), (3, 1, 3, 2), (3, 3, 1, 1), (3,), (3,))
    options = {"inner_activation": inner, "activation": outer, "residual": residual}
    options = {key: None if value == "none" else value for key, value in options.items()}
    check(lambda *t: functional.depthwise_separable_conv2d(*t, padding="same", dilation=(2, 1), **options), tensors)


# Padding on both sides and unequal, cropping on one side, strides that leave elements out, channels multiplied.
PADDINGS = ([(2, 1)], [(-1, 3)], [(0, -1)])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_depthwise_conv(axes, padding):
    tensors = make((2, 2, *(7, 4, 4)[:axes]), (4, 1, *(3, 2, 1)[:axes]), (4,))
    function = getattr(functional, f"depthwise_conv{axes}d")
    check(lambda *t: function(*t, stride=2, padding=padding * axes, activation="silu"), tensors)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("axes", [1, 3])
def test_separable_conv_of_other_ranks(axes, padding):
    tensors = make((1, 2, *(7, 4, 3)[:axes]), (4, 1, *(2, 2, 1)[:axes]), (3, 4, *(1,) * axes), (4,), (3,))
    function = getattr(functional, f"depthwise_separable_conv{axes}d")
    check(lambda *t: function(*t, stride=2, padding=padding * axes, inner_activation="silu"), tensors)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_layer(order, padding_mode):
    layer = dwsep.nn.DepthwiseSeparableConv2d(
        2, 3, order=order, padding_mode=padding_mode, inner_activation="silu", norm="batch", dtype=torch.float64
    ).eval()
    parameters = dict(layer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    values = [parameter.detach().clone().requires_grad_() for parameter in parameters.values()]
    check(call, make((2, 2, 4, 4)) + values)
