"""Depthwise forward pass and gradients on the Triton kernels: lays tensors out, allocates, launches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dwsep.kernels.triton import launch
from dwsep.kernels.triton.configs import Blocks
from dwsep.kernels.triton.shapes import Shape, shape_of

_PerAxis = Sequence[int]


@functools.lru_cache(maxsize=4096)
def _dense_strides(size: tuple[int, ...], last: bool) -> tuple[int, ...]:
    strides, step = [0] * len(size), 1
    order = (1, *range(len(size) - 1, 1, -1), 0) if last else range(len(size) - 1, -1, -1)
    for axis in order:
        strides[axis] = step
        step *= max(size[axis], 1)
    return tuple(strides)


def _dense(x: Tensor, last: bool) -> Tensor:
    """``x`` dense, with its channels innermost or its columns, whatever its sizes."""
    if x.stride() == _dense_strides(x.shape, last):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def _empty(like: Tensor, size: tuple[int, ...], last: bool) -> Tensor:
    return torch.empty_strided(size, _dense_strides(size, last), dtype=like.dtype, device=like.device)


def taps_of(weight: Tensor, last: bool) -> Tensor:
    """The weight as the kernels read it: where channels are innermost tap by tap, (taps, channels) in float32."""
    weight = weight.contiguous()
    if not last:
        return weight
    taps = torch.empty(weight[0].numel(), weight.shape[0], dtype=torch.float32, device=weight.device)
    return taps.copy_(weight.view(taps.shape[1], taps.shape[0]).t())


def _on_device_of(x: Tensor) -> AbstractContextManager:
    """Makes the GPU of ``x`` the one that kernels are launched on, where it is not."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def _correlate(
    src: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    outer: Tensor | None,
    dst: Tensor,
    shape: Shape,
    activation: str,
    transposed: bool,
    last: bool,
    blocks: Blocks | None,
) -> None:
    """Fills ``dst`` with the forward pass, or with the input's gradient."""
    build = launch.correlate_last if last else launch.correlate_planes
    call = build(shape, transposed, src.element_size(), bias is not None, activation, outer is not None, blocks)
    call(src, taps, taps if bias is None else bias, src if outer is None else outer, dst)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    activation: str,
    *,
    last: bool,
    taps: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """As :func:`dwsep.kernels.reference.depthwise_conv`, for one or two axes.

    Args:
        x: (N, C, *spatial), float32, float16 or bfloat16.
        weight: (C * M, 1, *kernel).
        bias: (C * M,) or ``None``.
        stride: per axis.
        padding: flat, (low, high) per axis.
        dilation: per axis.
        activation: name, or ``"none"``.
        last: whether the output's channels are to be innermost.
        taps: of the weight, where :func:`taps_of` has given them before.
        blocks: instead of those of ``configs``.
    """
    shape, output = shape_of(x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation))
    out = _empty(x, (x.shape[0], weight.shape[0], *output), last)
    if out.numel():
        with _on_device_of(x):
            taps = taps_of(weight, last) if taps is None else taps
            _correlate(_dense(x, last), taps, bias, None, out, shape, activation, False, last, blocks)
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    activation: str,
    output_mask: Sequence[bool],
    *,
    last: bool,
    taps: Tensor | None = None,
    blocks: Blocks | None = None,
    weight_blocks: Blocks | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`dwsep.kernels.reference.depthwise_conv_backward`; arguments as :func:`forward`'s."""
    wants_x, wants_weight, wants_bias = output_mask[0], output_mask[1], bool(output_mask[2] and bias is not None)
    if not grad.numel() or not x.numel():
        return (
            torch.zeros_like(x) if wants_x else None,
            torch.zeros_like(weight) if wants_weight else None,
            torch.zeros_like(bias) if wants_bias and bias is not None else None,
        )
    shape, _ = shape_of(x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation))
    x, grad = _dense(x, last), _dense(grad, last)
    grad_x = grad_weight = grad_bias = None
    with _on_device_of(x):
        if taps is None and (wants_x or activation != "none"):
            taps = taps_of(weight, last)
        if taps is not None and activation != "none":
            outer, grad = grad, torch.empty_like(grad)
            _correlate(x, taps, bias, outer, grad, shape, activation, False, last, None)
        if taps is not None and wants_x:
            grad_x = _empty(x, x.shape, last)
            _correlate(grad, taps, None, None, grad_x, shape, "none", True, last, blocks)
        if wants_weight or wants_bias:
            grad_weight = _empty(weight, weight.shape, False)
            grad_bias = weight.new_empty(weight.shape[0]) if wants_bias else None
            _weight_gradient(x, grad, grad_weight, grad_bias, shape, last, weight_blocks)
    return grad_x, grad_weight if wants_weight else None, grad_bias


def _weight_gradient(
    x: Tensor,
    grad: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    shape: Shape,
    last: bool,
    blocks: Blocks | None,
) -> None:
    """Fills the gradients of weight and bias: sums of chunks, then the chunks in order, so that the bits repeat."""
    has_bias = grad_bias is not None
    build = launch.weight_sums_last if last else launch.weight_sums_planes
    call, chunks = build(shape, x.element_size(), has_bias, blocks)
    partial = torch.empty(chunks, shape.taps + has_bias, shape.out_channels, dtype=torch.float32, device=x.device)
    call(x, grad, partial)
    add = launch.add_chunks(chunks, shape.taps, shape.out_channels, has_bias)
    add(partial, grad_weight, grad_weight if grad_bias is None else grad_bias)
