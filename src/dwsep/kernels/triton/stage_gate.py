"""Squeeze and excite on what a stage leaves pending, on the Triton kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dwsep.kernels.triton import stage_launch as launch
from dwsep.kernels.triton.depthwise import _dense, _empty, _on_device_of
from dwsep.kernels.triton.pointwise import add_partials
from dwsep.kernels.triton.stage_launch import TensorProblem


def _problem(x: Tensor, scale: Tensor | None, activation: str) -> TensorProblem:
    return TensorProblem(x.shape[0], math.prod(x.shape[2:]), x.shape[1], activation, scale is not None)


def pool(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    """The means of ``activation(scale * x + shift)`` over every image's pixels, (N, C) of x's type."""
    return _image_sums(x, scale, shift, activation, None)


def gate_gradient(grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    """The gradient (N, C) of a gate from that of the product, (N, C, *spatial)."""
    return _image_sums(x, scale, shift, activation, grad)


def _image_sums(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, grad: Tensor | None) -> Tensor:
    out = x.new_empty(x.shape[:2])
    if out.numel():
        with _on_device_of(x):
            x = _dense(x, True)
            call = launch.image_sums(_problem(x, scale, activation), grad is not None)
            call(
                x,
                x if scale is None else scale,
                x if shift is None else shift,
                x if grad is None else _dense(grad, True),
                out,
            )
    return out


def gate(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, gate: Tensor) -> Tensor:
    """``activation(scale * x + shift) * gate``, (N, C, *spatial), with a gate (N, C)."""
    out = _empty(x, tuple(x.shape), True)
    if x.numel():
        with _on_device_of(x):
            x = _dense(x, True)
            call = launch.gated(_problem(x, scale, activation))
            call(x, x if scale is None else scale, x if shift is None else shift, gate.contiguous(), out)
    return out


def squeeze_backward(
    grad: Tensor | None,
    gate: Tensor | None,
    grad_mean: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of (scale, shift), float64 (2, C), from those of the product with a gate, and of the means."""
    channels = x.shape[1]
    grad_x = _empty(x, tuple(x.shape), True)
    affine = None if scale is None else x.new_empty((2, channels), dtype=torch.float64)
    if not x.numel():
        return grad_x, None if affine is None else affine.zero_()
    with _on_device_of(x):
        call, parts = launch.squeeze_gradient(
            _problem(x, scale, activation), grad is not None and gate is not None, grad_mean is not None
        )
        x = _dense(x, True)
        size = (1,) if affine is None else (parts, 2, channels)
        partial = torch.empty(size, dtype=torch.float64, device=x.device)
        call(
            x if grad is None else _dense(grad, True),
            x if gate is None else gate.contiguous(),
            x if grad_mean is None else grad_mean.contiguous(),
            x,
            x if scale is None else scale,
            x if shift is None else shift,
            grad_x,
            partial,
        )
        if affine is not None:
            add_partials(partial, affine)
    return grad_x, affine
