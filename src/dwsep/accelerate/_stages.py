"""The differentiable stages of training: only raw outputs are saved, norms and activations exist while loading.

A stage's output is *pending*: the raw tensor, and the scale, shift and activation which whoever takes it applies. A
gradient reaches the raw tensor at fixed scale and shift, and those two through the carrier: a float64 (2, C) tensor
whose values nobody reads, and whose gradient is that of scale and shift. So autograd's own sums are right where a
pending output has several takers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dwsep import functional
from dwsep.geometry import ConvGeometry
from dwsep.kernels import stage_reference
from dwsep.kernels.activations import FORWARD

stage_ops = torch.ops.dwsep


@dataclass
class Pending:
    """activation(scale * raw + shift), not computed yet; without scale and shift, activation(raw)."""

    raw: Tensor
    carrier: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str = "none"
    _tensor: Tensor | None = None
    # The raw tensor behind a squeeze, for one product with a gate (_gates.py).
    passed: tuple[Tensor, Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether the values have been computed."""
        return self._tensor is not None

    def then(self, activation: str) -> Pending:
        """The same with an activation behind it."""
        if self.activation == "none":
            return replace(self, activation=activation, _tensor=None, passed=None)
        return Pending(self.tensor(), activation=activation)

    def tensor(self, residual: Tensor | None = None) -> Tensor:
        """The values, computed once; plus ``residual`` (N, C, H, W)."""
        raw = self.raw
        if residual is not None and residual.shape == raw.shape and residual.dtype is raw.dtype:
            return _Output.apply(raw, self.carrier, residual, self.scale, self.shift, self.activation)
        tensor: Any = self._tensor
        if tensor is None:
            if self.scale is None:
                tensor = FORWARD[self.activation](self.raw)
            else:
                tensor = _Output.apply(self.raw, self.carrier, None, self.scale, self.shift, self.activation)
            self._tensor = tensor
        return tensor if residual is None else tensor + residual


class BatchNorm:
    """What one call of a batch norm does to scale, shift and the running statistics, by the module's present state."""

    def __init__(self, norm: nn.BatchNorm2d, x_shape: Sequence[int]) -> None:
        self.norm = norm
        self.count = x_shape[0] * x_shape[2] * x_shape[3]
        # As attributes they take ten times as long to find.
        self.mean, self.var = norm._buffers["running_mean"], norm._buffers["running_var"]
        self.batches = norm._buffers["num_batches_tracked"]
        self.of_batch = norm.training or self.mean is None or self.var is None
        if self.of_batch and self.count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x_shape}")

    @property
    def updates(self) -> bool:
        """Whether the running statistics follow, where there are any."""
        return self.norm.training and self.norm.track_running_stats

    def statistics(self, sums: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scale, shift, mean and 1 / sqrt(var + eps), (C,); the running statistics and their counter follow."""
        norm = self.norm
        weight, bias = norm.weight, norm.bias
        if not self.of_batch:
            assert self.mean is not None
            assert self.var is not None
            return stage_reference.running_statistics(self.mean, self.var, weight, bias, norm.eps)
        (momentum,) = count_batches([self])
        mean, var = (self.mean, self.var) if self.updates else (None, None)
        return stage_ops.stage_statistics(sums, self.count, weight, bias, norm.eps, momentum, mean, var)


def count_batches(norms: Sequence[BatchNorm]) -> list[float]:
    """Count the batch where batches are counted; of each norm, how much of it goes into the running statistics."""
    momenta: list[float] = []
    counters: list[Tensor] = []
    for norm in norms:
        momentum, batches = norm.norm.momentum, norm.batches if norm.updates else None
        if momentum is not None:
            if batches is not None:
                counters.append(batches)
        elif batches is None:
            momentum = 0.0
        else:  # a mean of all batches: a norm that is there twice has to see each of its own
            momentum = 1.0 / float(batches.add_(1))
        momenta.append(momentum)
    if counters:
        torch.ops.aten._foreach_add_.Scalar(counters, 1)
    return momenta


def _norm_gradients(
    ctx: Any, grad_carrier: Tensor | None, mean: Tensor, invstd: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The correction of the raw output's gradient, and the gradients of the norm's weight and bias."""
    if grad_carrier is None:
        return None, None, None
    correction, grad_weight, grad_bias = stage_ops.stage_correction(grad_carrier, mean, invstd, weight, ctx.count)
    return (correction if ctx.of_batch else None), grad_weight, grad_bias


def _kind(x: Tensor, weight: Tensor, geometry: tuple[Sequence[int], ...]) -> str:
    """The name of a convolution's stage."""
    if not geometry:
        return "pointwise"
    return "depthwise" if x.shape[1] > weight.shape[1] else "dense"


class _ConvNorm(torch.autograd.Function):
    """A native convolution of a pending input and the batch norm behind it, if any."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_carrier: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        pending: tuple[Tensor | None, Tensor | None, str],
        geometry: tuple[Sequence[int], ...],
        norm: BatchNorm | None,
    ) -> tuple[Any, ...]:
        scale, shift, activation = pending
        kind = _kind(x, weight, geometry)
        y, sums = getattr(stage_ops, f"{kind}_stage")(x, scale, shift, activation, weight, bias, *geometry)
        ctx.set_materialize_grads(False)
        ctx.activation, ctx.geometry, ctx.has_bias = activation, geometry, bias is not None
        ctx.has_norm = norm is not None
        if norm is None:
            ctx.save_for_backward(x, scale, shift, weight)
            return y, None, None, None
        ctx.count, ctx.of_batch = norm.count, norm.of_batch
        out_scale, out_shift, mean, invstd = norm.statistics(sums)
        ctx.mark_non_differentiable(out_scale, out_shift)
        # The output itself is needed for the correction alone.
        ctx.save_for_backward(x, scale, shift, weight, y if norm.of_batch else None, mean, invstd, norm_weight)
        return y, sums, out_scale, out_shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_carrier: Tensor | None, *_: Any) -> tuple[Any, ...]:
        x, scale, shift, weight, *rest = ctx.saved_tensors
        correction = grad_norm_weight = grad_norm_bias = None
        y = x  # not read without a correction
        if ctx.has_norm:
            output, mean, invstd, norm_weight = rest
            found = _norm_gradients(ctx, grad_carrier, mean, invstd, norm_weight)
            correction, grad_norm_weight, grad_norm_bias = found
            y = x if output is None else output
        needs = ctx.needs_input_grad
        mask = [needs[0] or needs[1], needs[2] or needs[3]]
        grad_x = grad_affine = grad_weight = grad_bias = None
        if grad_y is None and correction is not None:
            grad_y = torch.zeros_like(y)
        if grad_y is not None and any(mask):
            kind = _kind(x, weight, ctx.geometry)
            if correction is None:
                y = grad_y
            grad_x, grad_affine, grad_weight, grad_bias = getattr(stage_ops, f"{kind}_stage_backward")(
                grad_y, y, correction, x, scale, shift, ctx.activation, weight, ctx.has_bias, *ctx.geometry, mask
            )
        grads = (grad_x, grad_affine, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=False)), None, None, None)


class _Norm(torch.autograd.Function):
    """A batch norm of a plain tensor, which it leaves pending: the tensor passes through, so that its gradient and the
    correction meet in one pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm: BatchNorm
    ) -> tuple[Tensor, ...]:
        sums = stage_ops.stage_sums(x) if norm.of_batch else x.new_empty((2, x.shape[1]), dtype=torch.float64)
        scale, shift, mean, invstd = norm.statistics(sums)
        ctx.set_materialize_grads(False)
        ctx.count, ctx.of_batch = norm.count, norm.of_batch
        ctx.mark_non_differentiable(scale, shift)
        ctx.save_for_backward(x if norm.of_batch else None, mean, invstd, norm_weight)
        return x.view_as(x), sums, scale, shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor | None, grad_carrier: Tensor | None, *_: Any) -> tuple[Any, ...]:
        x, mean, invstd, norm_weight = ctx.saved_tensors
        correction, grad_weight, grad_bias = _norm_gradients(ctx, grad_carrier, mean, invstd, norm_weight)
        needs = ctx.needs_input_grad
        if correction is not None and needs[0]:
            grad_x = stage_ops.stage_corrected(torch.zeros_like(x) if grad_x is None else grad_x, x, correction)
        grads = (grad_x, grad_weight, grad_bias)
        return (*(grad if need else None for grad, need in zip(grads, needs, strict=False)), None)


class _Output(torch.autograd.Function):
    """A pending output as a tensor, plus a residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_carrier: Tensor | None,
        residual: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        activation: str,
    ) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(None if scale is None and activation == "none" else x, scale, shift)
        return stage_ops.stage_output(x, scale, shift, activation, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, scale, shift = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x: Tensor | None = grad
        grad_affine = None
        if x is not None and (needs[0] or needs[1]):
            grad_x, grad_affine = stage_ops.stage_output_backward(grad, x, scale, shift, ctx.activation)
        grads = (grad_x, grad_affine, grad)
        return (*(one if need else None for one, need in zip(grads, needs, strict=False)), None, None, None)


def conv_norm(
    x: Pending,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    geometry: tuple[Sequence[int], ...],
    out_spatial: Sequence[int],
) -> Pending:
    """A depthwise or dense convolution (with stride, padding and dilation) or a pointwise one, and its batch norm."""
    of = None if norm is None else BatchNorm(norm, (x.raw.shape[0], conv.out_channels, *out_spatial))
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    pending = x.scale, x.shift, x.activation
    y, *rest = _ConvNorm.apply(x.raw, x.carrier, conv.weight, conv.bias, weight, bias, pending, geometry, of)
    return Pending(y, *rest)


def norm_only(x: Tensor, norm: nn.BatchNorm2d) -> Pending:
    """A batch norm of a plain tensor."""
    return Pending(*_Norm.apply(x, norm.weight, norm.bias, BatchNorm(norm, x.shape)))


def as_operand(x: Tensor) -> Tensor:
    """A tensor as a convolution on a GPU takes it: in autocast's dtype, where autocast is on there."""
    if not x.is_cuda or not torch.is_autocast_enabled("cuda"):
        return x
    return x.to(torch.get_autocast_dtype("cuda"))


def convolved(x: Tensor, conv: nn.Conv2d, geometry: ConvGeometry) -> Tensor:
    """A convolution that no stage runs: a depthwise one on whichever kernel is the faster, others on torch's own."""
    if conv.groups == conv.in_channels and not x.is_cuda:
        return functional.depthwise_conv(x, conv.weight, conv.bias, geometry, "none", "auto")
    padding = geometry.padding
    if padding is None or any(low != high for low, high in padding):
        (top, bottom), (left, right) = geometry.pads(x.shape[2:])
        x, sides = F.pad(x, (left, right, top, bottom)), (0, 0)
    else:
        sides = [low for low, _ in padding]
    return F.conv2d(x, conv.weight, conv.bias, geometry.stride, sides, geometry.dilation, conv.groups)
