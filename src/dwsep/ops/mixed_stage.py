"""``dwsep::mixed_stage`` and its backward: convolutions that each take some of the channels, as one stage.

As ``dwsep::depthwise_stage`` and ``dwsep::pointwise_stage``, with a weight for each part, which takes the channels of x
behind those of the part before. All are depthwise, with two entries of stride and dilation and four of padding a
weight, or all are 1x1, with none. The bias, if any, is that of all outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops import _stage_cuda
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last, gradients
from dwsep.ops.depthwise_conv import output_spatial

NAME = "mixed_stage"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
LIBRARY.define(
    f"{NAME}(Tensor x, Tensor? scale, Tensor? shift, str activation, Tensor[] weights, Tensor? bias, {_GEOMETRY}) "
    "-> (Tensor, Tensor)"
)
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, Tensor y, Tensor? correction, Tensor x, Tensor? scale, Tensor? shift, "
    f"str activation, Tensor[] weights, bool has_bias, {_GEOMETRY}, bool[2] output_mask) "
    "-> (Tensor, Tensor, Tensor[], Tensor)"
)


def _forward(
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
    geometries = stage_reference.geometries_of(weights, stride, padding, dilation)
    y, sums = stage_reference.mixed_stage(x, scale, shift, activation, weights, bias, geometries)
    return channels_last(y), sums


def _mixed_gradients(
    found: stage_reference.MixedStageGradients | None,
    x: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
    has_bias: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """The gradients in their layouts, as those of a stage with one weight."""
    grad_x, affine, grad_weights, grad_bias = (None, None, None, None) if found is None else found
    of_x = gradients((grad_x, affine, None, None), x, scale, weights[0], False, (mask[0], False))
    if not mask[1]:
        return of_x[0], of_x[1], [], of_x[3]
    made = [weight.new_empty(weight.shape) for weight in weights]
    made = made if grad_weights is None else [grad.contiguous() for grad in grad_weights]
    if not has_bias:
        return of_x[0], of_x[1], made, of_x[3]
    bias = x.new_empty(sum(weight.shape[0] for weight in weights)) if grad_bias is None else grad_bias
    return of_x[0], of_x[1], made, bias


def _backward(
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
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    geometries = stage_reference.geometries_of(weights, stride, padding, dilation)
    found = stage_reference.mixed_stage_backward(
        grad, y, correction, x, scale, shift, activation, weights, has_bias, geometries, output_mask
    )
    return _mixed_gradients(found, x, scale, weights, has_bias, output_mask)


def _finish(found: stage_reference.MixedStageGradients, *arguments: Any) -> tuple[Any, ...]:
    _, _, _, x, scale, _, _, weights, has_bias, *_, output_mask = arguments
    return _mixed_gradients(found, x, scale, weights, has_bias, output_mask)


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")
_stage_cuda.implement(NAME, _forward, "mixed_stage", "forward")
_stage_cuda.implement(f"{NAME}_backward", _backward, "mixed_stage", "backward", x=3, finish=_finish)


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, scale, shift, activation, weights, bias, stride, padding, dilation):
    channels = sum(weight.shape[0] for weight in weights)
    first = stage_reference.geometries_of(weights, stride, padding, dilation)[0]
    spatial = output_spatial(x, weights[0].shape[2:], *first) if first else x.shape[2:]
    return empty_channels_last(x, channels, spatial), x.new_empty((2, channels), dtype=torch.float64)


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, y, correction, x, scale, shift, activation, weights, has_bias, stride, padding, dilation, output_mask):
    return _mixed_gradients(None, x, scale, weights, has_bias, output_mask)
