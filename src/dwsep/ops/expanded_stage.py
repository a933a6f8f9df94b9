"""``dwsep::expanded_stage_backward``: back through a pointwise stage and the depthwise one behind it, as one.

The forward is ``dwsep::pointwise_stage``, ``dwsep::stage_statistics`` of what it made, and ``dwsep::depthwise_stage``.
The gradient between the two, which is as wide as the expanded tensor, is not stored: docs/design/stages.md says how.
``x`` comes with a scale and a shift, or as it is; ``activation`` is that of the expanded tensor.

Returned are the gradients of x, of its scale and shift (float64 (2, C)), of the pointwise weight, of the norm's weight
and bias, and of the depthwise weight and bias: empty where there is none, those of x where ``wants_x`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import gradients

NAME = "expanded_stage_backward"
LIBRARY.define(
    f"{NAME}(Tensor grad, Tensor y, Tensor? correction, Tensor x, Tensor? scale, Tensor? shift, Tensor weight, "
    "Tensor expanded, Tensor expanded_scale, Tensor expanded_shift, Tensor mean, Tensor invstd, Tensor? norm_weight, "
    "str activation, Tensor depthwise_weight, bool has_bias, int[] stride, int[] padding, int[] dilation, "
    "bool wants_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    expanded: Tensor,
    expanded_scale: Tensor,
    expanded_shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    norm_weight: Tensor | None,
    activation: str,
    depthwise_weight: Tensor,
    has_bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wants_x: bool,
) -> Gradients:
    pending = (expanded, expanded_scale, expanded_shift, activation)
    of_expanded, affine, of_depthwise, of_bias = stage_reference.stage_backward(
        grad, y, correction, *pending, depthwise_weight, has_bias, (stride, padding, dilation), (True, True)
    )
    assert of_expanded is not None
    assert affine is not None
    pixels = expanded.numel() // expanded.shape[1]
    own, of_norm_weight, of_norm_bias = torch.ops.dwsep.stage_correction(affine, mean, invstd, norm_weight, pixels)
    mask = (wants_x, True)
    found = stage_reference.stage_backward(of_expanded, expanded, own, x, scale, shift, "none", weight, False, (), mask)
    of_x, of_affine, of_weight, _ = gradients(found, x, scale, weight, False, mask)
    made = gradients((None, None, of_depthwise, of_bias), x, None, depthwise_weight, has_bias, (False, True))
    return of_x, of_affine, of_weight, of_norm_weight, of_norm_bias, made[2], made[3]


LIBRARY.impl(NAME, _backward, "CompositeExplicitAutograd")


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(grad, y, correction, x, scale, shift, weight, expanded, expanded_scale, expanded_shift, mean, invstd,
      norm_weight, activation, depthwise_weight, has_bias, stride, padding, dilation, wants_x):  # fmt: skip
    of_x, of_affine, of_weight, _ = gradients(None, x, scale, weight, False, (wants_x, True))
    _, _, of_depthwise, of_bias = gradients(None, x, None, depthwise_weight, has_bias, (False, True))
    channels = expanded.shape[1]
    return of_x, of_affine, of_weight, x.new_empty(channels), x.new_empty(channels), of_depthwise, of_bias
