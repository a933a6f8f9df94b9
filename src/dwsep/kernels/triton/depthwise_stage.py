"""Depthwise stages of training on the Triton kernels: lays tensors out, allocates, launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dwsep.kernels.stage_reference import StageGradients
from dwsep.kernels.triton import depthwise, stage_passes
from dwsep.kernels.triton import depthwise_stage_configs as tables
from dwsep.kernels.triton import depthwise_stage_launch as launch
from dwsep.kernels.triton.depthwise import _dense, _empty, _on_device_of, taps_of
from dwsep.kernels.triton.shapes import Shape, shape_of

_PerAxis = Sequence[int]


def _weight(weight: Tensor, shape: Shape) -> Tensor:
    return weight.contiguous() if launch.reads_weight_itself(shape) else taps_of(weight, True)


def _float(values: Tensor | None, otherwise: Tensor) -> Tensor:
    """A vector of a norm as the kernels read it, or what stands for it."""
    return otherwise if values is None else values.float().contiguous()


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
) -> tuple[Tensor, Tensor]:
    """As ``dwsep::depthwise_stage``: the raw output and its sums, for one or two axes and a depth multiplier of 1.

    Where an activation would cost more with every load than in a pass of its own, activation(scale * x + shift) is
    stored for a moment, rounded to the type of ``x``.

    Args:
        x: (N, C, *spatial), float32, float16 or bfloat16.
        scale: (C,), or ``None``.
        shift: (C,), or ``None``.
        activation: name, or ``"none"``.
        weight: (C, 1, *kernel).
        bias: (C,) or ``None``.
        stride: per axis.
        padding: flat, (low, high) per axis; pads with zeros what the activation gives.
        dilation: per axis.

    Returns:
        The output, of the type of ``x`` with its channels innermost, and float64 (2, C): the sums of the output as it
        is stored, and of its squares.
    """
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    shape, output = shape_of(x.shape, weight.shape, *geometry)
    if shape.cols.kernel > tables.MOST_COLUMNS:
        z = stage_passes.activated(x, scale, shift, activation)
        y = depthwise.forward(z, weight, bias, *geometry, "none", last=True).to(x.dtype)
        return y, stage_passes.ops.stage_sums(y)
    y = _empty(x, (x.shape[0], weight.shape[0], *output), True)
    if not y.numel():
        return y, torch.zeros(2, weight.shape[0], dtype=torch.float64, device=x.device)
    if (scale is not None or activation != "none") and not tables.activates_while_loading(
        shape, x.element_size(), activation
    ):
        x, scale, shift, activation = stage_passes.activated(x, scale, shift, activation), None, None, "none"
    sums = torch.empty(2, weight.shape[0], dtype=torch.float64, device=x.device)
    with _on_device_of(x):
        x, weight = _dense(x, True), _weight(weight, shape)
        call, chunks = launch.stage(shape, x.element_size(), bias is not None, scale is not None, activation)
        partial = torch.empty(chunks * (3 * shape.channels + 1), dtype=torch.float32, device=x.device)
        call(x, weight, weight if bias is None else bias, _float(scale, partial), _float(shift, partial), y, partial)
        launch.add_statistics(chunks, shape.channels)(partial, sums)
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
    stride: _PerAxis,
    padding: _PerAxis,
    dilation: _PerAxis,
    output_mask: Sequence[bool],
) -> StageGradients:
    """As ``dwsep::depthwise_stage_backward``: gradients of x, (scale, shift), weight and bias, where they are wanted.

    Args:
        grad: of the raw output ``y``, like it.
        y: raw output; read with a correction alone.
        correction: float32 (2, C), or ``None``: what is added to ``grad`` for each unit of ``y``, and in any case.
        x: as in :func:`forward`, as the further arguments.
        scale: as in :func:`forward`.
        shift: as in :func:`forward`.
        activation: as in :func:`forward`.
        weight: as in :func:`forward`.
        has_bias: whether there was one.
        stride: as in :func:`forward`.
        padding: as in :func:`forward`.
        dilation: as in :func:`forward`.
        output_mask: whether x and (scale, shift), and whether weight and bias.

    Returns:
        The gradient of ``x`` like it, channels innermost; that of scale and shift, float64 (2, C), summed before
        anything is rounded to the type of ``x``; those of weight and bias in the weight's type.
    """
    wants_x, wants_weight = output_mask
    affine, bias = wants_x and scale is not None, wants_weight and has_bias
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    channels = weight.shape[0]
    if not grad.numel() or not x.numel():
        return (
            torch.zeros_like(x) if wants_x else None,
            torch.zeros(2, channels, dtype=torch.float64, device=x.device) if affine else None,
            torch.zeros_like(weight) if wants_weight else None,
            weight.new_zeros(channels) if bias else None,
        )
    shape, _ = shape_of(x.shape, weight.shape, *geometry)
    if shape.taps > tables.MOST_BACKWARD_TAPS or (bias and not launch.sums_bias(shape)):

        def convolve_backward(
            dy: Tensor, z: Tensor, mask: Sequence[bool]
        ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            like_bias = weight.new_empty(channels) if mask[2] else None
            return depthwise.backward(dy, z, weight, like_bias, *geometry, "none", mask, last=True)

        return stage_passes.backward(
            grad, y, correction, x, scale, shift, activation, has_bias, output_mask, convolve_backward
        )
    with _on_device_of(x):
        grad, x, dense_weight = _dense(grad, True), _dense(x, True), _weight(weight, shape)
        y = grad if correction is None else _dense(y, True)
        call, chunks, classes = launch.stage_backward(
            shape, x.element_size(), correction is not None, scale is not None, activation, wants_x, wants_weight, bias
        )
        grad_x = _empty(x, tuple(x.shape), True) if wants_x else None
        grad_weight = _empty(weight, tuple(weight.shape), False) if wants_weight else None
        grad_bias = weight.new_empty(channels) if bias else None
        grad_affine = torch.empty(2, channels, dtype=torch.float64, device=x.device) if affine else None
        of_taps = chunks * (shape.taps + bias) * channels if wants_weight else 0
        of_taps += -of_taps % 4  # what follows begins at a multiple of 16 bytes
        partial = torch.empty(
            of_taps + (chunks * classes * 2 * channels if affine else 0), dtype=torch.float32, device=x.device
        )
        sums = partial[of_taps:]
        call(
            grad,
            y,
            _float(correction, partial),
            x,
            _float(scale, partial),
            _float(shift, partial),
            dense_weight,
            x if grad_x is None else grad_x,
            partial,
            sums if affine else partial,
        )
        if wants_weight or affine:
            add = launch.add_gradients(chunks, classes, shape, wants_weight, bias, affine)
            unused = partial
            add(
                partial,
                sums if affine else partial,
                unused if grad_weight is None else grad_weight,
                unused if grad_bias is None else grad_bias,
                unused if grad_affine is None else grad_affine,
            )
    return grad_x, grad_affine, grad_weight, grad_bias
