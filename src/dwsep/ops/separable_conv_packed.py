"""``dwsep::pack_separable_weights`` and ``dwsep::separable_conv_packed``: inference with weights packed once.

The native library's alone: there is no reference of them, and nothing to differentiate. Their result is that of
``dwsep::separable_conv`` bit for bit; but with ``bfloat16``, the same for both, of float32 tensors: pointwise weights
and what meets them are then rounded to it for the product, where the processor multiplies that faster.

The packed order depends on the depth multiplier; a convolution which adds its depthwise outputs (residual "depthwise")
takes weights packed with a multiplier of 1.
"""

from __future__ import annotations

import torch

from dwsep.ops._layout import empty_output
from dwsep.ops._library import LIBRARY, packed_separable_size
from dwsep.ops.depthwise_conv import output_spatial

LIBRARY.define(
    "pack_separable_weights(Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, "
    "Tensor? pointwise_bias, int depth_multiplier, bool bfloat16=False) -> Tensor"
)
LIBRARY.define(
    "separable_conv_packed(Tensor x, Tensor packed, int inner_channels, int out_channels, int[] kernel_size, "
    "int[] stride, int[] padding, int[] dilation, str inner_activation, str activation, str residual, "
    "bool bfloat16=False) -> Tensor"
)


@torch.library.register_fake("dwsep::pack_separable_weights", lib=LIBRARY)
def _(depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, depth_multiplier, bfloat16=False):
    inner, _, *kernel = depthwise_weight.shape
    taps = 1
    for size in kernel:
        taps *= size
    of_bfloat16 = depthwise_weight.dtype == torch.bfloat16
    sizes = inner, taps, pointwise_weight.shape[0]
    size = packed_separable_size(*sizes, depth_multiplier=depth_multiplier, bfloat16=of_bfloat16)
    return depthwise_weight.new_empty(size, dtype=torch.float32)


@torch.library.register_fake("dwsep::separable_conv_packed", lib=LIBRARY)
def _(x, packed, inner_channels, out_channels, kernel_size, stride, padding, dilation, *rest):
    spatial = output_spatial(x, kernel_size, stride, padding, dilation)
    return empty_output(x, (x.shape[0], out_channels, *spatial))
