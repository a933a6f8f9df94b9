"""A separable convolution of two operators: the native depthwise convolution, and PyTorch's pointwise one.

For training in bfloat16 where the CPU multiplies it: PyTorch's products are then the faster, and so is its depthwise
gradient of undilated 3x3 kernels in channels last; of all others it takes several times as long as the native one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.ops import depthwise_conv
from dwsep.ops._layout import is_channels_last


def _depthwise(native: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``native``, or PyTorch's where that is the faster."""

    def convolve(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        *rest: Any,
    ) -> Tensor:
        plain = x.dim() == 4 and max(weight.shape[2:]) <= 3 and set(stride) == set(dilation) == {1}
        stock = plain and weight.shape[0] == x.shape[1] and is_channels_last(x)
        return (reference.depthwise_conv if stock else native)(x, weight, bias, stride, padding, dilation, *rest)

    return convolve


separable_conv = partial(reference.separable_conv, depthwise=_depthwise(torch.ops.dwsep.depthwise_conv.default))
# As it is called where nothing but autograd sees the call.
WITH_AUTOGRAD = partial(reference.separable_conv, depthwise=_depthwise(depthwise_conv.WITH_AUTOGRAD))
