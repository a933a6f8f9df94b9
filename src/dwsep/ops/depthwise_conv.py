"""``dwsep::depthwise_conv`` and its backward: schema, fake kernels, autograd, autocast, vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.kernels.triton import support
from dwsep.ops import _autograd, _direct
from dwsep.ops._layout import empty_output, in_layout_of, is_channels_last
from dwsep.ops._library import LIBRARY

NAME = "depthwise_conv"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, str activation"
LIBRARY.define(f"{NAME}(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, bool[3] output_mask)"
    " -> (Tensor, Tensor, Tensor)"
)


def output_spatial(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Spatial output size, with sizes which may be symbolic."""
    return [
        (n + padding[2 * axis] + padding[2 * axis + 1] - dilation[axis] * (k - 1) - 1) // stride[axis] + 1
        for axis, (n, k) in enumerate(zip(x.shape[2:], kernel_size, strict=True))
    ]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return in_layout_of(x, reference.depthwise_conv(x, weight, bias, *rest))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    grads = reference.depthwise_conv_backward(grad, x, weight, bias, *rest)
    return fill_masked(grads, (x, weight, bias), rest[-1])


def fill_masked(
    grads: Sequence[Tensor | None] | None, inputs: Sequence[Tensor | None], mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients in an operator's layouts: x's own for x, contiguous for parameters, empty where none was asked.

    ``grads=None`` gives uninitialised tensors of the same shapes and strides, for the fake kernels.
    """
    x = inputs[0]
    assert x is not None
    result = []
    for position, (source, wanted) in enumerate(zip(inputs, mask, strict=True)):
        grad = None if grads is None else grads[position]
        if not wanted or source is None or (grads is not None and grad is None):
            result.append(x.new_empty(0))
        elif position == 0:
            result.append(empty_output(x, x.shape) if grad is None else in_layout_of(x, grad))
        else:
            result.append(source.new_empty(source.shape) if grad is None else grad.contiguous())
    return tuple(result)


def _forward_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Triton's kernels where they run, else PyTorch's."""
    if not support.runs(x):
        return _forward(x, weight, bias, *rest)
    from dwsep.kernels.triton import depthwise  # needs triton, which `import dwsep` does not

    return depthwise.forward(x, weight, bias, *rest, last=is_channels_last(x))


def _backward_cuda(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    if not support.runs(x):
        return _backward(grad, x, weight, bias, *rest)
    from dwsep.kernels.triton import depthwise

    grads = depthwise.backward(grad, x, weight, bias, *rest, last=is_channels_last(x))
    return fill_masked(grads, (x, weight, bias), rest[-1])


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")
LIBRARY.impl(NAME, _forward_cuda, "CUDA")
LIBRARY.impl(f"{NAME}_backward", _backward_cuda, "CUDA")


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, weight, bias, stride, padding, dilation, activation):
    return empty_output(
        x, (x.shape[0], weight.shape[0], *output_spatial(x, weight.shape[2:], stride, padding, dilation))
    )


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, x, weight, bias, stride, padding, dilation, activation, output_mask):
    return fill_masked(None, (x, weight, bias), output_mask)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *rest = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.rest = rest


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:3])
    grads = _autograd.gradient(
        f"{NAME}_backward", reference.depthwise_conv_backward, grad, *ctx.saved_tensors, *ctx.rest, mask
    )
    return (*(g if m else None for g, m in zip(grads, mask, strict=True)), None, None, None, None)


torch.library.register_autograd(f"dwsep::{NAME}", _autograd_backward, setup_context=_setup_context, lib=LIBRARY)
_autograd.register_autocast(NAME, 3)
_autograd.register_vmap(NAME, reference.depthwise_conv)

WITHOUT_AUTOGRAD = _direct.without_autograd(getattr(torch.ops.dwsep, NAME).default)
WITH_AUTOGRAD = _direct.with_autograd(getattr(torch.ops.dwsep, NAME).default, _setup_context, _autograd_backward)
