"""``dwsep::depthwise_stage`` and its backward: a depthwise convolution that applies its input's norm while loading.

As ``dwsep::pointwise_stage``; padding pads z, with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last, gradients
from dwsep.ops.depthwise_conv import output_spatial

NAME = "depthwise_stage"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
LIBRARY.define(
    f"{NAME}(Tensor x, Tensor? scale, Tensor? shift, str activation, Tensor weight, Tensor? bias, {_GEOMETRY}) "
    "-> (Tensor, Tensor)"
)
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, Tensor y, Tensor? correction, Tensor x, Tensor? scale, Tensor? shift, "
    f"str activation, Tensor weight, bool has_bias, {_GEOMETRY}, bool[2] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    y, sums = stage_reference.stage(x, scale, shift, activation, weight, bias, (stride, padding, dilation))
    return channels_last(y), sums


def _backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    has_bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    geometry = (stride, padding, dilation)
    found = stage_reference.stage_backward(
        grad, y, correction, x, scale, shift, activation, weight, has_bias, geometry, output_mask
    )
    return gradients(found, x, scale, weight, has_bias, output_mask)


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, scale, shift, activation, weight, bias, stride, padding, dilation):
    spatial = output_spatial(x, weight.shape[2:], stride, padding, dilation)
    y = empty_channels_last(x, weight.shape[0], spatial)
    return y, x.new_empty((2, weight.shape[0]), dtype=torch.float64)


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, y, correction, x, scale, shift, activation, weight, has_bias, stride, padding, dilation, output_mask):
    return gradients(None, x, scale, weight, has_bias, output_mask)
