"""What is pending around a convolution in passes of their own, where its kernel does not do it on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dwsep.kernels.stage_reference import StageGradients

ops = torch.ops.dwsep

# From the gradient of the raw output, the input and which are wanted: gradients of the input, the weight and the bias.
ConvBackward = Callable[[Tensor, Tensor, Sequence[bool]], tuple[Tensor | None, Tensor | None, Tensor | None]]


def activated(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    """activation(scale * x + shift), rounded to the type of ``x``; ``x`` itself where nothing is pending."""
    if scale is None and activation == "none":
        return x
    return ops.stage_output(x, scale, shift, activation, None).to(x.dtype)


def backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    has_bias: bool,
    output_mask: Sequence[bool],
    convolve_backward: ConvBackward,
) -> StageGradients:
    """A stage's gradients from those of its convolution, what is pending made before and behind them."""
    wants_x, wants_weight = output_mask
    if correction is not None:
        grad = ops.stage_corrected(grad, y, correction).to(x.dtype)
    z = activated(x, scale, shift, activation) if wants_weight else x
    grad_x, grad_weight, grad_bias = convolve_backward(grad, z, (wants_x, wants_weight, wants_weight and has_bias))
    grad_affine = None
    if grad_x is not None and (scale is not None or activation != "none"):
        grad_x, grad_affine = ops.stage_output_backward(grad_x, x, scale, shift, activation)
        grad_x, grad_affine = grad_x.to(x.dtype), None if scale is None else grad_affine
    return grad_x, grad_affine, grad_weight, grad_bias
