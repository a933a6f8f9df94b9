"""The mixed stage on a GPU: a stage for each of its parts, and their outputs one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.kernels.triton.depthwise import _dense

_ops = torch.ops.dwsep


def _slices(values: Tensor | None, sizes: Sequence[int], axis: int) -> list[Any]:
    """Parts of an image's channels, dense, or of values per channel."""
    if values is None:
        return [None] * len(sizes)
    parts = values.split(list(sizes), axis)
    return [_dense(part, True) if part.dim() == 4 else part.contiguous() for part in parts]


def _kind(geometry: Sequence[Any]) -> str:
    return "depthwise_stage" if geometry else "pointwise_stage"


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """As ``dwsep::mixed_stage``."""
    geometries = stage_reference.geometries_of(weights, stride, padding, dilation)
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


def backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weights: Sequence[Tensor],
    has_bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_mask: Sequence[bool],
) -> stage_reference.MixedStageGradients:
    """As ``dwsep::mixed_stage_backward``, ``None`` where no gradient is wanted."""
    geometries = stage_reference.geometries_of(weights, stride, padding, dilation)
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
