"""The pointwise stage and its backward on the Triton kernels: what the operators ``dwsep::pointwise_stage*`` run there.

Arguments and results are those of :mod:`dwsep.kernels.stage_reference`, of float32, float16 or bfloat16 tensors with
float32 accumulation. The sums are those of y as it is stored, rounded to its type: the statistics of the values which
the next stage reads. Operands of a product are rounded to x's type, as autocast has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels.triton import pointwise_launch as launch
from dwsep.kernels.triton import support
from dwsep.kernels.triton.depthwise import _dense, _empty, _on_device_of
from dwsep.kernels.triton.pointwise_configs import PointwiseBlocks
from dwsep.kernels.triton.pointwise_launch import PointwiseProblem


def _has_tensor_cores(x: Tensor) -> bool:
    """Whether the GPU has products of bfloat16 and TF32: Turing has none, nor has Triton's interpreter."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0)


def _precision(x: Tensor) -> str:
    """TF32 where PyTorch's own convolution of float32 would take it."""
    if x.dtype != torch.float32:
        return "ieee"
    return "tf32" if support.allows_tf32() and _has_tensor_cores(x) else "ieee"


def _problem(x: Tensor, scale: Tensor | None, activation: str, weight: Tensor, **others: bool) -> PointwiseProblem:
    return PointwiseProblem(
        math.prod(x.shape) // x.shape[1],
        x.shape[1],
        weight.shape[0],
        x.element_size(),
        activation,
        scale is not None,
        _precision(x),
        x.dtype == torch.bfloat16 and not _has_tensor_cores(x),
        **others,
    )


def _partial(like: Tensor, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device)


def add_partials(partial: Tensor, first: Tensor, second: Tensor | None = None) -> None:
    """Fills ``first``, and ``second`` with what is behind it, with the sums over partial's first axis."""
    chunks, elements = partial.shape[0], partial[0].numel()
    call = launch.add_partials(chunks, elements, elements if second is None else first.numel())
    call(partial, first, first if second is None else second)


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    *,
    blocks: PointwiseBlocks | None = None,
) -> tuple[Tensor, Tensor]:
    """The raw output and its sums, float64 (2, K).

    Args:
        x: (N, C, *spatial), raw.
        scale: (C,) or ``None``.
        shift: (C,), with a scale.
        activation: name, or ``"none"``.
        weight: (K, C, 1, ...).
        bias: (K,) or ``None``.
        blocks: instead of those of ``pointwise_configs``.
    """
    outputs = weight.shape[0]
    y = _empty(x, (x.shape[0], outputs, *x.shape[2:]), True)
    sums = x.new_empty((2, outputs), dtype=torch.float64)
    if not x.numel():
        return y, sums.zero_()
    with _on_device_of(x):
        x = _dense(x, True)
        call, chunks = launch.forward(_problem(x, scale, activation, weight, bias=bias is not None), blocks)
        partial = _partial(x, chunks, 2, outputs)
        call(
            x,
            weight.contiguous(),
            x if scale is None else scale,
            x if shift is None else shift,
            x if bias is None else bias,
            y,
            partial,
        )
        add_partials(partial, sums)
    return y, sums


def backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    has_bias: bool,
    output_mask: Sequence[bool],
    *,
    together: bool = True,
    blocks: PointwiseBlocks | None = None,
    weight_blocks: PointwiseBlocks | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, of (scale, shift) as float64 (2, C), of the weight and of the bias.

    Args:
        grad: (N, K, *spatial), of the raw output at fixed statistics.
        y: the raw output; read with a correction only.
        correction: (2, K) or ``None``.
        x: as in :func:`forward`.
        scale: likewise.
        shift: likewise.
        activation: likewise.
        weight: likewise.
        has_bias: whether the bias has a gradient.
        output_mask: whether those of x, scale and shift are wanted, and those of weight and bias.
        together: whether one pass may give all.
        blocks: instead of those of ``pointwise_configs``, of x's gradient or of all in one pass.
        weight_blocks: likewise, of the weight's.
    """
    wants_x, wants_weight = output_mask
    channels, outputs = x.shape[1], weight.shape[0]
    wants_bias = wants_weight and has_bias
    grad_x = _empty(x, tuple(x.shape), True) if wants_x else None
    grad_affine = x.new_empty((2, channels), dtype=torch.float64) if wants_x and scale is not None else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wants_weight else None
    grad_bias = weight.new_empty(outputs) if wants_bias else None
    found = grad_x, grad_affine, grad_weight, grad_bias
    if not x.numel():
        for empty in found:
            if empty is not None:
                empty.zero_()
        return found

    with _on_device_of(x):
        problem = _problem(x, scale, activation, weight, bias=wants_bias, corrected=correction is not None)
        grad, x, weight = _dense(grad, True), _dense(x, True), weight.contiguous()
        y = grad if correction is None else _dense(y, True)
        load = (
            grad,
            y,
            x if correction is None else correction.contiguous(),
            x,
            x if scale is None else scale,
            x if shift is None else shift,
        )
        both = launch.both_gradients(problem, blocks) if together and wants_x and wants_weight else None
        partial = partial_weight = None
        if both is not None and grad_x is not None:
            call, chunks = both
            partial, partial_weight = _affine_partial(x, chunks, grad_affine), _weight_partial(x, chunks, problem)
            call(*load, weight, grad_x, partial, partial_weight)
        else:
            if grad_x is not None:
                call, chunks = launch.input_gradient(launch.without_weight(problem), blocks)
                partial = _affine_partial(x, chunks, grad_affine)
                call(*load, weight, grad_x, partial)
            if grad_weight is not None:
                call, chunks = launch.weight_gradient(problem, weight_blocks)
                partial_weight = _weight_partial(x, chunks, problem)
                call(*load, partial_weight)
        if grad_affine is not None and partial is not None:
            add_partials(partial, grad_affine)
        if grad_weight is not None and partial_weight is not None:
            add_partials(partial_weight, grad_weight, grad_bias)
    return found


def _affine_partial(x: Tensor, chunks: int, grad_affine: Tensor | None) -> Tensor:
    return x if grad_affine is None else _partial(x, chunks, 2, x.shape[1])


def _weight_partial(x: Tensor, chunks: int, problem: PointwiseProblem) -> Tensor:
    elements = problem.outputs * (problem.channels + problem.bias)
    return _partial(x, chunks, elements, dtype=torch.float32)
