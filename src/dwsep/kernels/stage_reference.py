"""The stages of training in plain PyTorch: a convolution with its input's norm and activation, and their gradients.

A stage reads the raw output of the convolution before it and applies that one's norm, as a scale and a shift per
channel, and its activation while loading: z = activation(scale * x + shift). It returns its own raw output with the
sums that the next norm comes from. See docs/design/stages.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dwsep.kernels import reference
from dwsep.kernels.activations import BACKWARD, FORWARD

StageGradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
MixedStageGradients = tuple[Tensor | None, Tensor | None, list[Tensor] | None, Tensor | None]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.dim() - 2))


def affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``scale * x + shift`` per channel of ``x`` (N, C, *spatial); ``x`` itself without a scale."""
    if scale is None or shift is None:
        return x
    return x * _per_channel(scale, x) + _per_channel(shift, x)


def sums_of(y: Tensor) -> Tensor:
    """The sums of ``y`` and of its squares, per channel: float64 (2, C)."""
    axes = [axis for axis in range(y.dim()) if axis != 1]
    wide = y.double()
    return torch.stack([wide.sum(axes), (wide * wide).sum(axes)])


def corrected(grad: Tensor, y: Tensor, correction: Tensor | None) -> Tensor:
    """The gradient of a raw output ``y``, with what comes to it through the statistics of its norm."""
    if correction is None:
        return grad
    return grad + _per_channel(correction[0], y) * y + _per_channel(correction[1], y)


def through_affine(
    grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``x``, and of scale and shift as float64 (2, C), from that of activation(scale * x + shift)."""
    before = BACKWARD[activation](grad, affine(x, scale, shift))
    if scale is None or shift is None:
        return before, None
    axes = [axis for axis in range(x.dim()) if axis != 1]
    wide = before.double()
    sums = torch.stack([(wide * x.double()).sum(axes), wide.sum(axes)])
    return before * _per_channel(scale, x), sums


def convolve(
    z: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[Sequence[int]], dense: bool = False
) -> Tensor:
    if not geometry:
        return reference._CONV[z.dim() - 2](z, weight, bias)
    stride, padding, dilation = geometry
    if not dense:
        return reference.depthwise_conv(z, weight, bias, stride, padding, dilation, "none")
    symmetric, rest = reference._split_padding(padding)
    return reference._CONV[2](reference._pad(z, rest), weight, bias, list(stride), symmetric, list(dilation))


def convolve_backward(
    grad: Tensor,
    z: Tensor,
    weight: Tensor,
    geometry: Sequence[Sequence[int]],
    dense: bool,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of z, of the weight and of the bias, as far as ``mask`` wants them."""
    ndim = z.dim() - 2
    stride, padding, dilation = geometry or ([1] * ndim, [0] * (2 * ndim), [1] * ndim)
    if geometry and not dense:
        bias = weight.new_zeros(weight.shape[0]) if mask[2] else None
        return reference.depthwise_conv_backward(grad, z, weight, bias, stride, padding, dilation, "none", mask)
    symmetric, rest = reference._split_padding(padding)
    grad_z, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, reference._pad(z, rest), weight, [weight.shape[0]], list(stride), symmetric, list(dilation), False,
        [0] * ndim, 1, mask,
    )  # fmt: skip
    if mask[0]:
        grad_z = reference._pad(grad_z, [-side for side in rest])
    return grad_z, grad_weight, grad_bias


def stage(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Sequence[Sequence[int]] = (),
    dense: bool = False,
) -> tuple[Tensor, Tensor]:
    """The raw output and its sums; with a ``geometry`` (stride, padding, dilation) depthwise or ``dense``, else 1x1."""
    y = convolve(FORWARD[activation](affine(x, scale, shift)), weight, bias, geometry, dense)
    return y, sums_of(y)


def stage_backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    has_bias: bool,
    geometry: Sequence[Sequence[int]],
    output_mask: Sequence[bool],
    dense: bool = False,
) -> StageGradients:
    """Gradients of x, of (scale, shift), of the weight and of the bias."""
    z = FORWARD[activation](affine(x, scale, shift))
    wants_x, wants_weight = output_mask
    mask = [wants_x, wants_weight, wants_weight and has_bias]
    grad_z, grad_weight, grad_bias = convolve_backward(corrected(grad, y, correction), z, weight, geometry, dense, mask)
    grad_x, grad_affine = (None, None) if grad_z is None else through_affine(grad_z, x, scale, shift, activation)
    return grad_x, grad_affine, grad_weight, grad_bias


# Of x (N, C, H, W), with a weight (K, C, kernel height, kernel width).
dense_stage = partial(stage, dense=True)
dense_stage_backward = partial(stage_backward, dense=True)


def _parts(values: Tensor | None, sizes: Sequence[int], axis: int) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if values is None else values.split(list(sizes), axis)


def inputs_of(weights: Sequence[Tensor], geometries: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """The channels which the convolutions of a mixed stage take."""
    return [w.shape[0] if geometry else w.shape[1] for w, geometry in zip(weights, geometries, strict=True)]


def geometries_of(
    weights: Sequence[Tensor], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[tuple[Sequence[int], ...]]:
    """Each part's own geometry of a mixed stage's, empty for a 1x1 convolution."""
    if not stride:
        return [() for _ in weights]
    return [
        (stride[2 * i : 2 * i + 2], padding[4 * i : 4 * i + 4], dilation[2 * i : 2 * i + 2])
        for i in range(len(weights))
    ]


def mixed_stage(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    geometries: Sequence[Sequence[Sequence[int]]],
) -> tuple[Tensor, Tensor]:
    """Stages of x's channels in turn, as many as weights: their raw outputs one behind the other, and the sums."""
    inputs, outputs = inputs_of(weights, geometries), [weight.shape[0] for weight in weights]
    pending = zip(x.split(inputs, 1), _parts(scale, inputs, 0), _parts(shift, inputs, 0), strict=True)
    ys = [
        convolve(FORWARD[activation](affine(*values)), weight, part_bias, geometry)
        for values, weight, part_bias, geometry in zip(
            pending, weights, _parts(bias, outputs, 0), geometries, strict=True
        )
    ]
    y = torch.cat(ys, 1)
    return y, sums_of(y)


def mixed_stage_backward(
    grad: Tensor,
    y: Tensor,
    correction: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weights: Sequence[Tensor],
    has_bias: bool,
    geometries: Sequence[Sequence[Sequence[int]]],
    output_mask: Sequence[bool],
) -> MixedStageGradients:
    """Gradients of x, of (scale, shift), of the weights and of the bias."""
    inputs, outputs = inputs_of(weights, geometries), [weight.shape[0] for weight in weights]
    of_outputs = zip(grad.split(outputs, 1), y.split(outputs, 1), _parts(correction, outputs, 1), strict=True)
    of_inputs = zip(x.split(inputs, 1), _parts(scale, inputs, 0), _parts(shift, inputs, 0), strict=True)
    found = [
        stage_backward(*after, *before, activation, weight, has_bias, geometry, output_mask)
        for after, before, weight, geometry in zip(of_outputs, of_inputs, weights, geometries, strict=True)
    ]
    grad_x, grad_affine, grad_weights, grad_bias = (
        [grad for grad in grads if grad is not None] for grads in zip(*found, strict=True)
    )
    return (
        torch.cat(grad_x, 1) if grad_x else None,
        torch.cat(grad_affine, 1) if grad_affine else None,
        grad_weights or None,
        torch.cat(grad_bias) if grad_bias else None,
    )


def output(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """activation(scale * x + shift) + residual."""
    z = FORWARD[activation](affine(x, scale, shift))
    return z if residual is None else z + residual


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(*values.shape, *(1,) * (like.dim() - 2))


def pool(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    """The means of activation(scale * x + shift) over every image's pixels, (N, C)."""
    z = FORWARD[activation](affine(x, scale, shift))
    return z.flatten(2).mean(2, dtype=torch.float64).to(x.dtype)


def gate(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, gate: Tensor) -> Tensor:
    """activation(scale * x + shift) * gate, with a gate (N, C)."""
    return FORWARD[activation](affine(x, scale, shift)) * _per_image(gate, x)


def gate_gradient(grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str) -> Tensor:
    """The gradient (N, C) of a gate from that of the product."""
    z = FORWARD[activation](affine(x, scale, shift))
    return (grad * z).flatten(2).sum(2, dtype=torch.float64).to(x.dtype)


def squeeze_backward(
    grad: Tensor | None,
    gate: Tensor | None,
    grad_mean: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of (scale, shift) from those of the product with a gate, and of the means."""
    grad_z = torch.zeros_like(x) if grad is None or gate is None else grad * _per_image(gate, x)
    if grad_mean is not None:
        grad_z = grad_z + _per_image(grad_mean, x) / (x.numel() / max(1, x.shape[0] * x.shape[1]))
    return through_affine(grad_z, x, scale, shift, activation)


def running_statistics(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, shift, mean and 1 / sqrt(var + eps) of a norm that keeps to its running statistics."""
    invstd = torch.rsqrt(var + eps)
    scale = invstd.clone() if weight is None else invstd * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return scale, shift, mean.clone(), invstd


def statistics(
    sums: Tensor,
    count: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    momentum: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, shift, mean and 1 / sqrt(var + eps) of a batch norm from its input's sums; updates the running ones."""
    mean = sums[0] / count
    var = (sums[1] / count - mean * mean).clamp_min(0.0)
    invstd = (var + eps).rsqrt()
    scale = invstd if weight is None else invstd * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
    if running_var is not None:
        unbiased = var * (count / max(count - 1, 1))
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    return scale.float(), shift.float(), mean.float(), invstd.float()


def correction_of(
    grad_affine: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradients of scale and shift mean for the raw output, (2, C), and for the norm's weight and bias."""
    mean, invstd, grads = mean.double(), invstd.double(), grad_affine.double()
    grad_shift = grads[1]
    grad_scale = grads[0] - mean * grad_shift
    factor = invstd if weight is None else invstd * weight
    grad_mean = -factor * grad_shift
    # Twice the gradient of the variance: -1/2 invstd^3 weight grad_scale.
    slope = -invstd * invstd * factor * grad_scale / count
    correction = torch.stack([slope, grad_mean / count - slope * mean])
    return correction.float(), (grad_scale * invstd).float(), grad_shift.float()
