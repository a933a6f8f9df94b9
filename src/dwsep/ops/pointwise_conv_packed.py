"""``dwsep::pack_pointwise_weights`` and ``dwsep::pointwise_conv_packed``: a 1x1 convolution's inference.

activation(convolution + bias) + residual in one pass, channels last, float32. With ``bfloat16``, the same for both,
weights and x are rounded to it for the product where the processor multiplies that faster; the sums are float32 all the
same. The native library's alone: there is no reference of them, and nothing to differentiate.
"""

from __future__ import annotations

import torch

from dwsep.ops._library import LIBRARY, packed_pointwise_size
from dwsep.ops._stage import empty_channels_last

LIBRARY.define("pack_pointwise_weights(Tensor weight, Tensor? bias, bool bfloat16=False) -> Tensor")
LIBRARY.define(
    "pointwise_conv_packed(Tensor x, Tensor packed, int out_channels, str activation, Tensor? residual, "
    "bool bfloat16=False) -> Tensor"
)


@torch.library.register_fake("dwsep::pack_pointwise_weights", lib=LIBRARY)
def _(weight, bias, bfloat16=False):
    return weight.new_empty(packed_pointwise_size(weight.shape[1], weight.shape[0]))


@torch.library.register_fake("dwsep::pointwise_conv_packed", lib=LIBRARY)
def _(x, packed, out_channels, activation, residual, bfloat16=False):
    return empty_channels_last(x, out_channels, x.shape[2:])
