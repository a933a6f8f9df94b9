"""Separable convolution on the GPU: one Triton kernel where that pays, else one and PyTorch's product."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.kernels.triton import depthwise, support
from dwsep.kernels.triton import separable_launch as launch
from dwsep.kernels.triton.depthwise import _dense, _empty, _on_device_of
from dwsep.kernels.triton.shapes import shape_of

_PerAxis = Sequence[int]
_MINIMUM_CAPABILITY = (8, 0)  # below, products take more registers than there are, and know no TF32


def separable_runs(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    *,
    last: bool,
) -> bool:
    """Whether one kernel computes the layer, rather than one for each of its factors.

    It does where channels are innermost, the sums of all output channels fit into a program, and the products are those
    of tensor cores: of half precision, or of float32 where TF32 is allowed.
    """
    if not last or torch.cuda.get_device_capability(x.device) < _MINIMUM_CAPABILITY:
        return False
    if x.dtype == torch.float32 and launch.precision_of(x.dtype) != "tf32":
        return False
    shape, _ = shape_of(x.shape, depthwise_weight.shape, tuple(stride), tuple(padding), tuple(dilation))
    return launch.pays(shape, pointwise_weight.shape[0])


def fused(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    inner_activation: str,
    activation: str,
    residual: str,
) -> Tensor:
    """As :func:`dwsep.kernels.reference.separable_conv`, in one kernel, whatever :func:`separable_runs` says of it.

    The depthwise result is rounded to the type of ``x`` before the product, the rest is float32.

    Args:
        x: (N, C, *spatial), float32, float16 or bfloat16, one or two axes.
        depthwise_weight: (C * M, 1, *kernel).
        pointwise_weight: (K, C * M, *ones), of the type of ``x``, K up to 256.
        depthwise_bias: (C * M,) or ``None``.
        pointwise_bias: (K,) or ``None``.
        stride: per axis.
        padding: flat, (low, high) per axis.
        dilation: per axis.
        inner_activation: name, or ``"none"``.
        activation: likewise.
        residual: ``"none"``, ``"input"`` or ``"depthwise"``.

    Returns:
        (N, K, *spatial), of the type of ``x`` with its channels innermost.
    """
    shape, output = shape_of(x.shape, depthwise_weight.shape, tuple(stride), tuple(padding), tuple(dilation))
    out_channels = pointwise_weight.shape[0]
    out = _empty(x, (x.shape[0], out_channels, *output), True)
    if not out.numel():
        return out
    biases = depthwise_bias is not None, pointwise_bias is not None
    with _on_device_of(x):
        weight = depthwise_weight.contiguous()
        call = launch.separable_call(
            shape, out_channels, *biases, inner_activation, activation, residual, launch.precision_of(x.dtype)
        )
        call(
            _dense(x, True),
            weight,
            weight if depthwise_bias is None else depthwise_bias,
            pointwise_weight.contiguous(),
            weight if pointwise_bias is None else pointwise_bias,
            out,
        )
    return out


def forward(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    inner_activation: str,
    activation: str,
    residual: str,
    *,
    last: bool,
) -> Tensor:
    """As :func:`fused` where that is asked for and should pay, else the factors one by one.

    ``last``: whether channels are innermost.
    """
    weights = depthwise_weight, pointwise_weight
    rest = stride, padding, dilation, inner_activation, activation, residual
    biases = depthwise_bias, pointwise_bias
    if support.FUSED and separable_runs(x, *weights, stride, padding, dilation, last=last):
        return fused(x, *weights, *biases, *rest)
    return reference.separable_conv(x, *weights, *biases, *rest, depthwise=partial(depthwise.forward, last=last))


def backward(
    grad: Tensor,
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    inner_activation: str,
    activation: str,
    residual: str,
    output_mask: Sequence[bool],
    *,
    last: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`dwsep.kernels.reference.separable_conv_backward`: products by PyTorch, the rest by Triton."""
    return reference.separable_conv_backward(
        grad,
        x,
        depthwise_weight,
        pointwise_weight,
        depthwise_bias,
        pointwise_bias,
        stride,
        padding,
        dilation,
        inner_activation,
        activation,
        residual,
        output_mask,
        depthwise=partial(depthwise.forward, last=last),
        depthwise_backward=partial(depthwise.backward, last=last),
    )
