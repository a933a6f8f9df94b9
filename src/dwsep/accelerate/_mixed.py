"""The differentiable stage of convolutions that each take some of the channels, as MixNet's: no split, no copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dwsep.accelerate import _modules
from dwsep.accelerate._stages import BatchNorm, Pending, _norm_gradients

stage_ops = torch.ops.dwsep


class _MixedConvNorm(torch.autograd.Function):
    """Native convolutions of the channels of a pending input in turn, and the batch norm behind them, if any."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_carrier: Tensor | None,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        pending: tuple[Tensor | None, Tensor | None, str],
        geometry: tuple[Sequence[int], ...],
        norm: BatchNorm | None,
        *weights: Tensor,
    ) -> tuple[Any, ...]:
        scale, shift, activation = pending
        y, sums = stage_ops.mixed_stage(x, scale, shift, activation, weights, bias, *geometry)
        ctx.set_materialize_grads(False)
        ctx.activation, ctx.geometry, ctx.has_bias = activation, geometry, bias is not None
        ctx.has_norm = norm is not None
        if norm is None:
            ctx.save_for_backward(x, scale, shift, None, None, None, None, *weights)
            return y, None, None, None
        ctx.count, ctx.of_batch = norm.count, norm.of_batch
        out_scale, out_shift, mean, invstd = norm.statistics(sums)
        ctx.mark_non_differentiable(out_scale, out_shift)
        # The output itself is needed for the correction alone.
        output = y if norm.of_batch else None
        ctx.save_for_backward(x, scale, shift, output, mean, invstd, norm_weight, *weights)
        return y, sums, out_scale, out_shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_carrier: Tensor | None, *_: Any) -> tuple[Any, ...]:
        x, scale, shift, output, mean, invstd, norm_weight, *weights = ctx.saved_tensors
        correction = grad_norm_weight = grad_norm_bias = None
        if ctx.has_norm:
            found = _norm_gradients(ctx, grad_carrier, mean, invstd, norm_weight)
            correction, grad_norm_weight, grad_norm_bias = found
        needs = ctx.needs_input_grad
        of_weights = needs[8:]
        mask = [needs[0] or needs[1], needs[2] or any(of_weights)]
        grad_x = grad_affine = grad_bias = None
        grad_weights: Sequence[Tensor | None] = [None] * len(weights)
        if grad_y is None and correction is not None:
            grad_y = torch.zeros_like(output)
        if grad_y is not None and any(mask):
            y = grad_y if correction is None else output  # not read without a correction
            grad_x, grad_affine, made, grad_bias = stage_ops.mixed_stage_backward(
                grad_y, y, correction, x, scale, shift, ctx.activation, weights, ctx.has_bias, *ctx.geometry, mask
            )
            grad_weights = made if mask[1] else grad_weights
        grads = (grad_x, grad_affine, grad_bias, grad_norm_weight, grad_norm_bias, None, None, None, *grad_weights)
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def _bias(convs: Sequence[nn.Conv2d]) -> Tensor | None:
    """The biases one behind the other, zeros for a convolution that has none beside one that has."""
    if all(conv.bias is None for conv in convs):
        return None
    return torch.cat([c.weight.new_zeros(c.out_channels) if c.bias is None else c.bias for c in convs])


def conv_norm(x: Pending, convs: Sequence[nn.Conv2d], norm: nn.BatchNorm2d | None) -> Pending:
    """Depthwise or 1x1 convolutions which take the channels of ``x`` in turn, and the batch norm behind them.

    Raises:
        RuntimeError: their outputs differ in size.
    """
    spatial = out_spatial = x.raw.shape[2:]
    geometry: tuple[list[int], list[int], list[int]] = ([], [], [])
    for conv in convs:
        if _modules.is_pointwise(conv):
            continue
        of_conv = _modules.geometry_of(conv)
        out_spatial = of_conv.output_size(spatial)
        geometry[0].extend(of_conv.stride)
        geometry[1].extend(side for pair in of_conv.pads(spatial) for side in pair)
        geometry[2].extend(of_conv.dilation)
    channels = sum(conv.out_channels for conv in convs)
    of = None if norm is None else BatchNorm(norm, (x.raw.shape[0], channels, *out_spatial))
    affine = (None, None) if norm is None else (norm.weight, norm.bias)
    weights = [conv.weight for conv in convs]
    pending = x.scale, x.shift, x.activation
    y, *rest = _MixedConvNorm.apply(x.raw, x.carrier, _bias(convs), *affine, pending, geometry, of, *weights)
    return Pending(y, *rest)
