"""``dwsep::pointwise_stage`` and its backward: a 1x1 convolution that applies its input's norm while loading.

x is the raw output of the convolution before; z = activation(scale * x + shift) exists in the cache alone. Returned are
the raw output y and, float64 (2, K), the sums of y and of its squares. Operators without derivatives of their own: who
chains stages calls the backward (docs/design/stages.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last, gradients

NAME = "pointwise_stage"
LIBRARY.define(
    f"{NAME}(Tensor x, Tensor? scale, Tensor? shift, str activation, Tensor weight, Tensor? bias) -> (Tensor, Tensor)"
)
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, Tensor y, Tensor? correction, Tensor x, Tensor? scale, Tensor? shift, "
    "str activation, Tensor weight, bool has_bias, bool[2] output_mask) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, sums = stage_reference.stage(x, scale, shift, activation, weight, bias)
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
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    found = stage_reference.stage_backward(
        grad, y, correction, x, scale, shift, activation, weight, has_bias, (), output_mask
    )
    return gradients(found, x, scale, weight, has_bias, output_mask)


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, scale, shift, activation, weight, bias):
    y = empty_channels_last(x, weight.shape[0], x.shape[2:])
    return y, x.new_empty((2, weight.shape[0]), dtype=torch.float64)


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, y, correction, x, scale, shift, activation, weight, has_bias, output_mask):
    return gradients(None, x, scale, weight, has_bias, output_mask)
