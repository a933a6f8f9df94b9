"""Dense and mixed stages made of other stages' operators, for devices without kernels of their own for them.

A dense convolution is the device's own, between the passes over its input and its output that the stages' operators
make of norm, activation, sums and correction; a mixed one is a stage for each of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._stage import channels_last

_ops = torch.ops.dwsep
_PerAxis = Sequence[int]


def _loaded(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    return x if scale is None and activation == "none" else _ops.stage_output(x, scale, shift, activation, None)


def dense_stage(
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


def dense_stage_backward(
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


def _slices(values: Tensor | None, sizes: Sequence[int], axis: int) -> list[Any]:
    """Parts of an image's channels, dense, or of values per channel."""
    if values is None:
        return [None] * len(sizes)
    parts = values.split(list(sizes), axis)
    return [channels_last(part) if part.dim() == 4 else part.contiguous() for part in parts]


def _kind(geometry: Sequence[Any]) -> str:
    return "depthwise_stage" if geometry else "pointwise_stage"


def mixed_stage(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    geometries: Sequence[Sequence[_PerAxis]],
) -> tuple[Tensor, Tensor]:
    """As :func:`dwsep.kernels.stage_reference.mixed_stage`."""
    inputs, outputs = stage_reference.inputs_of(weights, geometries), [weight.shape[0] for weight in weights]
    parts = zip(
        _slices(x, inputs, 1), _slices(scale, inputs, 0), _slices(shift, inputs, 0), weights,
        _slices(bias, outputs, 0), geometries, strict=True,
    )  # fmt: skip
    found = [
        getattr(_ops, _kind(geometry))(part, by, more, activation, weight, part_bias, *geometry)
        for part, by, more, weight, part_bias, geometry in parts
    ]
    return torch.cat([y for y, _ in found], 1), torch.cat([sums for _, sums in found], 1)


def mixed_stage_backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weights: Sequence[Tensor],
    has_bias: bool,
    geometries: Sequence[Sequence[_PerAxis]],
    output_mask: Sequence[bool],
) -> stage_reference.MixedStageGradients:
    """As :func:`dwsep.kernels.stage_reference.mixed_stage_backward`."""
    inputs, outputs = stage_reference.inputs_of(weights, geometries), [weight.shape[0] for weight in weights]
    after = zip(_slices(grad, outputs, 1), _slices(y, outputs, 1), _slices(correction, outputs, 1), strict=True)
    before = zip(_slices(x, inputs, 1), _slices(scale, inputs, 0), _slices(shift, inputs, 0), strict=True)
    found = [
        getattr(_ops, f"{_kind(geometry)}_backward")(
            *of_y, *of_x, activation, weight, has_bias, *geometry, list(output_mask)
        )
        for of_y, of_x, weight, geometry in zip(after, before, weights, geometries, strict=True)
    ]
    wants_x, wants_weight = output_mask
    grad_x, grad_affine, grad_weights, grad_bias = (list(grads) for grads in zip(*found, strict=True))
    return (
        torch.cat(grad_x, 1) if wants_x else None,
        torch.cat(grad_affine, 1) if wants_x and scale is not None else None,
        grad_weights if wants_weight else None,
        torch.cat(grad_bias) if wants_weight and has_bias else None,
    )
