"""``dwsep::separable_conv`` and its backward: schema, fake kernels, autograd, autocast, vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.kernels.triton import support
from dwsep.ops import _autograd, _direct
from dwsep.ops._layout import empty_output, in_layout_of, is_channels_last
from dwsep.ops._library import LIBRARY
from dwsep.ops.depthwise_conv import fill_masked, output_spatial

NAME = "separable_conv"
_TENSORS = "Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, Tensor? pointwise_bias"
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, str inner_activation, str activation, str residual"
LIBRARY.define(f"{NAME}({_TENSORS}, {_GEOMETRY}) -> Tensor")
LIBRARY.define(
    f"{NAME}_backward(Tensor grad, {_TENSORS}, {_GEOMETRY}, bool[5] output_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(x: Tensor, *rest: Any) -> Tensor:
    return in_layout_of(x, reference.separable_conv(x, *rest))


def _backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return fill_masked(reference.separable_conv_backward(grad, *args), args[:5], args[-1])


def _forward_cuda(x: Tensor, *rest: Any) -> Tensor:
    """Triton's kernels where they run, else PyTorch's."""
    if not support.runs(x):
        return _forward(x, *rest)
    from dwsep.kernels.triton import separable  # needs triton, which `import dwsep` does not

    return in_layout_of(x, separable.forward(x, *rest, last=is_channels_last(x)))


def _backward_cuda(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    if not support.runs(x):
        return _backward(grad, x, *rest)
    from dwsep.kernels.triton import separable

    found = separable.backward(grad, x, *rest, last=is_channels_last(x))
    return fill_masked(found, (x, *rest[:4]), rest[-1])


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")
LIBRARY.impl(NAME, _forward_cuda, "CUDA")
LIBRARY.impl(f"{NAME}_backward", _backward_cuda, "CUDA")


@torch.library.register_fake(f"dwsep::{NAME}", lib=LIBRARY)
def _(x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation, *rest):
    spatial = output_spatial(x, depthwise_weight.shape[2:], stride, padding, dilation)
    return empty_output(x, (x.shape[0], pointwise_weight.shape[0], *spatial))


@torch.library.register_fake(f"dwsep::{NAME}_backward", lib=LIBRARY)
def _(grad, *args):
    return fill_masked(None, args[:5], args[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:5])
    grads = _autograd.gradient(
        f"{NAME}_backward", reference.separable_conv_backward, grad, *ctx.saved_tensors, *ctx.rest, mask
    )
    return (*(g if m else None for g, m in zip(grads, mask, strict=True)), *(None,) * 6)


torch.library.register_autograd(f"dwsep::{NAME}", _autograd_backward, setup_context=_setup_context, lib=LIBRARY)
_autograd.register_autocast(NAME, 5)
_autograd.register_vmap(NAME, reference.separable_conv)

WITHOUT_AUTOGRAD = _direct.without_autograd(getattr(torch.ops.dwsep, NAME).default)
WITH_AUTOGRAD = _direct.with_autograd(getattr(torch.ops.dwsep, NAME).default, _setup_context, _autograd_backward)
