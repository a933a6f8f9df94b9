"""The dense stage on a GPU: PyTorch's convolution between passes of the other stages' operators.

Those are one over its input, of norm and activation, and one over its output, of the sums; on the way back, one that
corrects the gradient, and the input's again.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.triton import stage_passes
from dwsep.kernels.triton.depthwise import _dense

_PerAxis = Sequence[int]


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
    z = stage_passes.activated(x, scale, shift, activation)
    bias = None if bias is None else bias.to(z.dtype)
    y = stage_reference.convolve(z, weight.to(z.dtype), bias, (stride, padding, dilation), dense=True)
    y = _dense(y, True)
    return y, stage_passes.ops.stage_sums(y)


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

    def convolve_backward(
        dy: Tensor, z: Tensor, mask: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad_z, *of_parameters = stage_reference.convolve_backward(
            dy, z, weight.to(z.dtype), (stride, padding, dilation), True, mask
        )
        grad_weight, grad_bias = (None if of is None else of.to(weight.dtype) for of in of_parameters)
        return None if grad_z is None else _dense(grad_z, True), grad_weight, grad_bias

    return stage_passes.backward(
        grad, y, correction, x, scale, shift, activation, has_bias, output_mask, convolve_backward
    )
