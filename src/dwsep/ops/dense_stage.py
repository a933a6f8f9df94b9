"""``dwsep::dense_stage`` and its backward: a dense convolution of images as they are, a network's first.

Returned are the raw output y and, float64 (2, K), the sums of y and of its squares, as from ``dwsep::pointwise_stage``;
back, the gradients of weight and bias. Images have no gradient here: whoever wants one takes torch's convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last, gradients
from dwsep.ops.depthwise_conv import output_spatial

NAME = "dense_stage"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
LIBRARY.define(f"{NAME}(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, Tensor y, Tensor? correction, Tensor x, Tensor weight, bool has_bias, {_GEOMETRY}) "
    "-> (Tensor, Tensor)"
)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    y, sums = stage_reference.dense_stage(x, weight, bias, (stride, padding, dilation))
    return channels_last(y), sums


def _backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    weight: Tensor,
    has_bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, ...]:
    geometry = (stride, padding, dilation)
    of = stage_reference.dense_stage_backward(grad, y, correction, x, weight, has_bias, geometry)
    return gradients((None, None, *of), x, None, weight, has_bias, (False, True))[2:]


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, weight, bias, stride, padding, dilation):
    spatial = output_spatial(x, weight.shape[2:], stride, padding, dilation)
    return empty_channels_last(x, weight.shape[0], spatial), x.new_empty((2, weight.shape[0]), dtype=torch.float64)


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, y, correction, x, weight, has_bias, stride, padding, dilation):
    return gradients(None, x, None, weight, has_bias, (False, True))[2:]
