"""Every operator in plain PyTorch, differentiable to any order: the truth that native kernels are compared with.

``padding`` is flat, (low, high) per spatial axis, as the operators take it. The backward functions recompute what they
need from the inputs, so that an operator saves its inputs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep.kernels.activations import BACKWARD, FORWARD

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _split_padding(padding: Sequence[int]) -> tuple[list[int], list[int]]:
    """The part every axis has on both sides, which a convolution takes, and the rest in the order of ``F.pad``."""
    symmetric, rest = [], []
    for low, high in zip(padding[0::2], padding[1::2], strict=True):
        both = max(min(low, high), 0)
        # A crop on one side cannot be combined with padding inside the convolution on the other one's behalf.
        if low < 0 or high < 0:
            both = 0
        symmetric.append(both)
        rest.append((low - both, high - both))
    return symmetric, [side for pair in reversed(rest) for side in pair]


def _pad(x: Tensor, rest: Sequence[int]) -> Tensor:
    return F.pad(x, list(rest)) if any(rest) else x


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Tensor:
    """Depthwise convolution of ``x`` (N, C, *spatial) with ``weight`` (C * M, 1, *kernel), bias, then activation."""
    symmetric, rest = _split_padding(padding)
    conv = _CONV[x.dim() - 2]
    out = conv(_pad(x, rest), weight, bias, list(stride), symmetric, list(dilation), groups=x.shape[1])
    return FORWARD[activation](out)


def depthwise_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`depthwise_conv` for ``x``, ``weight`` and ``bias``, where ``output_mask`` asks."""
    if activation != "none":
        raw = depthwise_conv(x, weight, bias, stride, padding, dilation, "none")
        grad = BACKWARD[activation](grad, raw)
    symmetric, rest = _split_padding(padding)
    ndim = x.dim() - 2
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        _pad(x, rest),
        weight,
        [weight.shape[0]],
        list(stride),
        symmetric,
        list(dilation),
        False,
        [0] * ndim,
        x.shape[1],
        [bool(output_mask[0]), bool(output_mask[1]), bool(output_mask[2] and bias is not None)],
    )
    if output_mask[0]:
        grad_x = _pad(grad_x, [-side for side in rest])  # the adjoint of padding crops, that of cropping pads
    return grad_x, grad_weight, grad_bias


def separable_conv(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    inner_activation: str,
    activation: str,
    residual: str,
    *,
    depthwise: Callable[..., Tensor] = depthwise_conv,
) -> Tensor:
    """Depthwise convolution, then pointwise: with D = inner_activation(depthwise(x)), activation(pointwise(D)).

    ``residual="depthwise"`` adds D before the activation, ``"input"`` adds x after it. ``depthwise`` is what convolves
    first, called as :func:`depthwise_conv` is.
    """
    inner = depthwise(x, depthwise_weight, depthwise_bias, stride, padding, dilation, inner_activation)
    out = _CONV[x.dim() - 2](inner, pointwise_weight, pointwise_bias)
    if residual == "depthwise":
        out = out + inner
    out = FORWARD[activation](out)
    return out + x if residual == "input" else out


def separable_conv_backward(
    grad: Tensor,
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    inner_activation: str,
    activation: str,
    residual: str,
    output_mask: Sequence[bool],
    *,
    depthwise: Callable[..., Tensor] = depthwise_conv,
    depthwise_backward: Callable[..., Any] = depthwise_conv_backward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`separable_conv` with respect to its five tensors, where ``output_mask`` asks.

    ``depthwise`` and ``depthwise_backward`` are called as :func:`depthwise_conv` and its backward are.
    """
    raw = depthwise(x, depthwise_weight, depthwise_bias, stride, padding, dilation, "none")
    inner = FORWARD[inner_activation](raw)
    grad_out = grad
    if activation != "none":
        out = _CONV[x.dim() - 2](inner, pointwise_weight, pointwise_bias)
        if residual == "depthwise":
            out = out + inner
        grad_out = BACKWARD[activation](grad, out)
    ndim = x.dim() - 2
    below = bool(output_mask[0] or output_mask[1] or output_mask[3])
    grad_inner, grad_pointwise, grad_pointwise_bias = torch.ops.aten.convolution_backward(
        grad_out,
        inner,
        pointwise_weight,
        [pointwise_weight.shape[0]],
        [1] * ndim,
        [0] * ndim,
        [1] * ndim,
        False,
        [0] * ndim,
        1,
        [below, bool(output_mask[2]), bool(output_mask[4] and pointwise_bias is not None)],
    )
    grad_x = grad_depthwise = grad_depthwise_bias = None
    if below:
        if residual == "depthwise":
            grad_inner = grad_inner + grad_out
        grad_x, grad_depthwise, grad_depthwise_bias = depthwise_backward(
            BACKWARD[inner_activation](grad_inner, raw),
            x,
            depthwise_weight,
            depthwise_bias,
            stride,
            padding,
            dilation,
            "none",
            (output_mask[0], output_mask[1], output_mask[3]),
        )
    if residual == "input" and grad_x is not None:
        grad_x = grad_x + grad
    return grad_x, grad_depthwise, grad_pointwise, grad_depthwise_bias, grad_pointwise_bias
