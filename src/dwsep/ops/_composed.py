"""A separable convolution of two operators: the native depthwise convolution, and PyTorch's pointwise one.

For training in bfloat16 where the CPU multiplies it: PyTorch's products are then the faster, and so is its depthwise
gradient of undilated 3x3 kernels in channels last; of all others it takes several times as long as the native one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.ops import depthwise_conv
from dwsep.ops._layout import is_channels_last


def _suits_pytorch(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    plain = x.dim() == 4 and max(weight.shape[2:]) <= 3 and set(stride) == set(dilation) == {1}
    return plain and weight.shape[0] == x.shape[1] and is_channels_last(x)


def _composed(depthwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def separable_conv(
        x: Tensor,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        depthwise_bias: Tensor | None,
        pointwise_bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        inner_activation: str,
        activation: str,
        residual: str,
    ) -> Tensor:
        stock = _suits_pytorch(x, depthwise_weight, stride, dilation)
        apply = reference.depthwise_conv if stock else depthwise
        inner = apply(x, depthwise_weight, depthwise_bias, stride, padding, dilation, inner_activation)
        return reference.pointwise_behind(inner, x, pointwise_weight, pointwise_bias, activation, residual)

    return separable_conv


separable_conv = _composed(torch.ops.dwsep.depthwise_conv.default)
# As it is called where nothing but autograd sees the call.
WITH_AUTOGRAD = _composed(depthwise_conv.WITH_AUTOGRAD)
