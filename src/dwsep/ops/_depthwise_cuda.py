"""The depthwise convolution on a GPU without the dispatcher in between, whose Python takes longer than the kernels.

``dwsep::depthwise_conv`` is what a compiler, a mode or a transform sees. Where there is none of them, and autograd
alone has to know, the kernels are called from here. Both give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwsep import _functorch
from dwsep.kernels import reference
from dwsep.ops._layout import is_channels_last

_PLAIN = (Tensor, nn.Parameter)


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


def _is_plain(*tensors: Tensor | None) -> bool:
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    activation: str,
) -> Tensor:
    """As ``torch.ops.dwsep.depthwise_conv``, for tensors on a GPU that Triton's kernels run on."""
    if (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cuda")
        or not _is_plain(x, weight, bias)
        or torch._C._len_torch_dispatch_stack()
        or _functorch.is_active()
    ):
        return torch.ops.dwsep.depthwise_conv(x, weight, bias, stride, padding, dilation, activation)
    return _Depthwise.apply(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), activation)
