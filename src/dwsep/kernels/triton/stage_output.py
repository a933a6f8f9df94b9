"""What a stage leaves pending as a tensor, and the way back, on the Triton kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dwsep.kernels.triton import stage_launch as launch
from dwsep.kernels.triton.depthwise import _dense, _empty, _on_device_of
from dwsep.kernels.triton.pointwise import add_partials
from dwsep.kernels.triton.stage_launch import TensorProblem


def _problem(x: Tensor, scale: Tensor | None, activation: str) -> TensorProblem:
    return TensorProblem(1, math.prod(x.shape) // x.shape[1], x.shape[1], activation, scale is not None)


def forward(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """``activation(scale * x + shift) + residual``, (N, C, *spatial) of x's type, rounded once."""
    out = _empty(x, tuple(x.shape), True)
    if x.numel():
        with _on_device_of(x):
            x = _dense(x, True)
            call = launch.output(_problem(x, scale, activation), residual is not None)
            call(
                x,
                x if scale is None else scale,
                x if shift is None else shift,
                x if residual is None else _dense(residual, True),
                out,
            )
    return out


def backward(
    grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x, and of (scale, shift) as float64 (2, C)."""
    channels = x.shape[1]
    grad_x = _empty(x, tuple(x.shape), True)
    affine = None if scale is None else x.new_empty((2, channels), dtype=torch.float64)
    if not x.numel():
        return grad_x, None if affine is None else affine.zero_()
    with _on_device_of(x):
        call, chunks = launch.output_gradient(_problem(x, scale, activation))
        grad, x = _dense(grad, True), _dense(x, True)
        size = (1,) if affine is None else (chunks, 2, channels)
        partial = torch.empty(size, dtype=torch.float64, device=x.device)
        call(grad, x, x if scale is None else scale, x if shift is None else shift, grad_x, partial)
        if affine is not None:
            add_partials(partial, affine)
    return grad_x, affine
