"""Depthwise forward pass and gradients on the Triton kernels: lays tensors out, allocates, launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels.triton import launch
from dwsep.kernels.triton.configs import Blocks
from dwsep.kernels.triton.shapes import output_size, shape_of

_Geometry = Sequence[int]


def _dense(x: Tensor, last: bool) -> Tensor:
    """``x`` dense, with its channels innermost or its columns, whatever its sizes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def _empty(x: Tensor, channels: int, spatial: Sequence[int], last: bool) -> Tensor:
    if last:
        return x.new_empty((x.shape[0], *spatial, channels)).movedim(-1, 1)
    return x.new_empty((x.shape[0], channels, *spatial))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Geometry,
    padding: _Geometry,
    dilation: _Geometry,
    activation: str,
    *,
    last: bool,
    blocks: Blocks | None = None,
) -> Tensor:
    """As :func:`dwsep.kernels.reference.depthwise_conv`, for one or two axes.

    Args:
        x: (N, C, *spatial), float32, float16 or bfloat16.
        weight: (C * M, 1, *kernel).
        bias: (C * M,) or ``None``.
        stride: per axis.
        padding: flat, (low, high) per axis.
        dilation: per axis.
        activation: name, or ``"none"``.
        last: whether the output's channels are to be innermost.
        blocks: instead of those of ``configs``.
    """
    output = output_size(x, weight, stride, padding, dilation)
    shape = shape_of(x, weight, output, stride, padding, dilation)
    out = _empty(x, weight.shape[0], output, last)
    if out.numel():
        correlate = launch.correlate_last if last else launch.correlate_planes
        correlate(_dense(x, last), weight.contiguous(), bias, None, out, shape, activation, False, blocks)
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Geometry,
    padding: _Geometry,
    dilation: _Geometry,
    activation: str,
    output_mask: Sequence[bool],
    *,
    last: bool,
    blocks: Blocks | None = None,
    weight_blocks: Blocks | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`dwsep.kernels.reference.depthwise_conv_backward`; arguments as :func:`forward`'s."""
    shape = shape_of(x, weight, grad.shape[2:], stride, padding, dilation)
    wants_x, wants_weight, wants_bias = output_mask[0], output_mask[1], bool(output_mask[2] and bias is not None)
    if not grad.numel() or not x.numel():
        return (
            torch.zeros_like(x) if wants_x else None,
            torch.zeros_like(weight) if wants_weight else None,
            torch.zeros_like(bias) if wants_bias and bias is not None else None,
        )
    x, grad, weight = _dense(x, last), _dense(grad, last), weight.contiguous()
    correlate = launch.correlate_last if last else launch.correlate_planes
    if activation != "none":
        outer, grad = grad, torch.empty_like(grad)
        correlate(x, weight, bias, outer, grad, shape, activation, False, None)
    grad_x = grad_weight = grad_bias = None
    if wants_x:
        grad_x = _empty(x, shape.channels, x.shape[2:], last)
        correlate(grad, weight, None, None, grad_x, shape, "none", True, blocks)
    if wants_weight or wants_bias:
        grad_weight = weight.new_empty(weight.shape)
        grad_bias = weight.new_empty(weight.shape[0]) if wants_bias else None
        weight_gradient = launch.weight_gradient_last if last else launch.weight_gradient_planes
        weight_gradient(x, grad, grad_weight, grad_bias, shape, weight_blocks)
    return grad_x, grad_weight if wants_weight else None, grad_bias
