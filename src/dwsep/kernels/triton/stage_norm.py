"""The batch norm between stages on the Triton kernels: one launch for what follows channel by channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dwsep.kernels.triton import stage_launch as launch
from dwsep.kernels.triton.depthwise import _dense, _empty, _on_device_of
from dwsep.kernels.triton.pointwise import add_partials
from dwsep.kernels.triton.stage_launch import TensorProblem


def sums(x: Tensor) -> Tensor:
    """The sums of ``x`` (N, C, *spatial) and of its squares, per channel: float64 (2, C)."""
    channels = x.shape[1]
    found = x.new_empty((2, channels), dtype=torch.float64)
    if not x.numel():
        return found.zero_()
    with _on_device_of(x):
        call, chunks = launch.channel_sums(TensorProblem(1, math.prod(x.shape) // channels, channels))
        partial = torch.empty((chunks, 2, channels), dtype=torch.float64, device=x.device)
        call(_dense(x, True), partial)
        add_partials(partial, found)
    return found


def corrected(grad: Tensor, y: Tensor, correction: Tensor) -> Tensor:
    """The gradient of a raw output ``y``, with what comes to it through the statistics of its norm."""
    out = _empty(y, tuple(y.shape), True)
    if y.numel():
        with _on_device_of(y):
            call = launch.corrected(TensorProblem(1, math.prod(y.shape) // y.shape[1], y.shape[1]))
            call(_dense(grad, True), _dense(y, True), correction.contiguous(), out)
    return out


def statistics(
    sums: Tensor,
    count: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    momentum: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, shift, mean and 1 / sqrt(var + eps), float32 (C,), from sums, float64 (2, C); updates the running ones."""
    channels = sums.shape[1]
    scale, shift, mean, invstd = (sums.new_empty(channels, dtype=torch.float32) for _ in range(4))
    given = weight, bias, running_mean, running_var
    with _on_device_of(sums):
        present = tuple(tensor is not None for tensor in given)
        call = launch.statistics(channels, count, eps, momentum, present)  # type: ignore[arg-type]
        call(sums.contiguous(), *(sums if tensor is None else tensor for tensor in given), scale, shift, mean, invstd)
    return scale, shift, mean, invstd


def correction_of(
    grad_affine: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The correction, float32 (2, C), and the gradients of the norm's weight and bias, (C,)."""
    channels = mean.shape[0]
    correction = mean.new_empty((2, channels), dtype=torch.float32)
    grad_weight, grad_bias = (mean.new_empty(channels, dtype=torch.float32) for _ in range(2))
    with _on_device_of(mean):
        call = launch.correction(channels, count, weight is not None)
        call(
            grad_affine.contiguous(),
            mean,
            invstd,
            mean if weight is None else weight,
            correction,
            grad_weight,
            grad_bias,
        )
    return correction, grad_weight, grad_bias
