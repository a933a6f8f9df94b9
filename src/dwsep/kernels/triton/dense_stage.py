"""The dense stage on a GPU: PyTorch's convolution between passes of the other stages' operators.

Those are one over its input, of norm and activation, and one over its output, of the sums; on the way back, one that
corrects the gradient, and the input's again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels import stage_reference

_ops = torch.ops.dwsep
_PerAxis = Sequence[int]


def channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels innermost and dense, copied if need be, whatever its sizes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _loaded(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    return x if scale is None and activation == "none" else _ops.stage_output(x, scale, shift, activation, None)


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
) -> tuple[Tensor, Tensor]:
    """As ``dwsep::dense_stage``; weight and bias may be of another dtype than x (N, C, H, W), which y has."""
    z = _loaded(x, scale, shift, activation)
    bias = None if bias is None else bias.to(z.dtype)
    y = stage_reference.convolve(z, weight.to(z.dtype), bias, (stride, padding, dilation), dense=True)
    y = channels_last(y)
    return y, _ops.stage_sums(y)


def backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    has_bias: bool,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    output_mask: Sequence[bool],
) -> stage_reference.StageGradients:
    """As ``dwsep::dense_stage_backward``, ``None`` where no gradient is wanted; the weight's has its own dtype."""
    wants_x, wants_weight = output_mask
    z = _loaded(x, scale, shift, activation) if wants_weight else x
    dy = grad if correction is None else _ops.stage_corrected(grad, y, correction)
    mask = [wants_x, wants_weight, wants_weight and has_bias]
    grad_z, grad_weight, grad_bias = stage_reference.convolve_backward(
        dy, z, weight.to(z.dtype), (stride, padding, dilation), True, mask
    )
    grad_x = grad_affine = None
    if grad_z is not None:
        grad_x = channels_last(grad_z)
        if scale is not None or activation != "none":
            grad_x, grad_affine = _ops.stage_output_backward(grad_x, x, scale, shift, activation)
    grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
    grad_bias = None if grad_bias is None else grad_bias.to(weight.dtype)
    return grad_x, None if scale is None else grad_affine, grad_weight, grad_bias
