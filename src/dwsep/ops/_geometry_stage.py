"""Defines a stage of a convolution which has a geometry, depthwise or dense, and its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last, empty_channels_last, gradients
from dwsep.ops.depthwise_conv import output_spatial

_GEOMETRY = "int[] stride, int[] padding, int[] dilation"


def define(name: str, reference: Callable[..., Any], reference_backward: Callable[..., Any]) -> None:
    """Define ``dwsep::{name}`` and ``dwsep::{name}_backward`` on references that take the geometry as one argument."""
    LIBRARY.define(
        f"{name}(Tensor x, Tensor? scale, Tensor? shift, str activation, Tensor weight, Tensor? bias, {_GEOMETRY}) "
        "-> (Tensor, Tensor)"
    )
    LIBRARY.define(
        f"{name}_backward(Tensor grad, Tensor y, Tensor? correction, Tensor x, Tensor? scale, Tensor? shift, "
        f"str activation, Tensor weight, bool has_bias, {_GEOMETRY}, bool[2] output_mask) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    )

    def forward(
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
        y, sums = reference(x, scale, shift, activation, weight, bias, (stride, padding, dilation))
        return channels_last(y), sums

    def backward(
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
        found = reference_backward(
            grad, y, correction, x, scale, shift, activation, weight, has_bias, geometry, output_mask
        )
        return gradients(found, x, scale, weight, has_bias, output_mask)

    def fake(x, scale, shift, activation, weight, bias, stride, padding, dilation):
        spatial = output_spatial(x, weight.shape[2:], stride, padding, dilation)
        y = empty_channels_last(x, weight.shape[0], spatial)
        return y, x.new_empty((2, weight.shape[0]), dtype=torch.float64)

    def fake_backward(
        grad, y, correction, x, scale, shift, activation, weight, has_bias, stride, padding, dilation, output_mask
    ):
        return gradients(None, x, scale, weight, has_bias, output_mask)

    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dwsep::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(f"dwsep::{name}_backward", fake_backward, lib=LIBRARY)
