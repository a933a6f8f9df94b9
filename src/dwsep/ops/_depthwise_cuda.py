"""The depthwise convolution on a GPU where nothing but autograd has to see the call, as in ``_direct``.

Unlike there, what the backward pass needs to know of the layout is worked out once, in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.ops._layout import is_channels_last


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:  # type: ignore[override]
        from dwsep.kernels.triton import depthwise

        ctx.save_for_backward(x, weight, bias)
        ctx.rest, ctx.last = rest, is_channels_last(x)
        ctx.taps = depthwise.taps_of(weight, ctx.last)
        return depthwise.forward(x, weight, bias, *rest, last=ctx.last, taps=ctx.taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        mask = ctx.needs_input_grad[:3]
        x, weight, bias = ctx.saved_tensors
        stride, padding, dilation, activation = ctx.rest
        if torch.is_grad_enabled():  # to be differentiated again
            grads = reference.depthwise_conv_backward(
                grad, x, weight, bias, stride, padding, dilation, activation, mask
            )
        else:
            from dwsep.kernels.triton import depthwise

            grads = depthwise.backward(
                grad, x, weight, bias, stride, padding, dilation, activation, mask, last=ctx.last, taps=ctx.taps
            )
        return (*grads, None, None, None, None)


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, activation: str
) -> Tensor:
    """As ``torch.ops.dwsep.depthwise_conv``, for tensors on a GPU that Triton's kernels run on."""
    return _Depthwise.apply(x, weight, bias, stride, padding, dilation, activation)
