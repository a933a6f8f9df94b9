"""The batch norm between stages: a raw output's sums, its gradient's correction, and steps per channel."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.pending import (
    add_moments,
    load_gradient,
    load_tile,
    load_vector,
    store_moments,
    store_tile,
)


@triton.jit(do_not_specialize=["pixels", "tiles", "tiles_per_chunk", "blocks"])
def channel_sums(
    x,  # (pixels, C), dense
    partial,  # (chunks, 2, C), float64
    pixels,
    tiles,
    tiles_per_chunk,
    blocks,  # of channels
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """The sums of a chunk's pixels and of their squares."""
    program = tl.program_id(0)
    chunk = program // blocks
    c = program % blocks * BC + tl.arange(0, BC)
    inside_c = c < C
    zeros = tl.zeros((BC,), tl.float32)
    moments = (zeros, zeros, zeros, zeros, zeros)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tiles)
    for tile in range(first, last):
        pixel = tile * BP + tl.arange(0, BP)
        inside_pixel = pixel < pixels
        if WIDE:
            pixel = pixel.to(tl.int64)
        value = load_tile(x, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
        moments = add_moments(value, inside_pixel, tile == first, moments, BP)
    count = tl.minimum(last * BP, pixels) - first * BP
    store_moments(partial, chunk, c, inside_c, count, moments, C)


@triton.jit(do_not_specialize=["pixels", "blocks"])
def corrected(
    grad,  # (pixels, C), dense
    y,  # (pixels, C), dense
    correction,  # (2, C)
    out,  # (pixels, C), dense
    pixels,
    blocks,  # of channels
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """``grad + a * y + b``."""
    program = tl.program_id(0)
    c = program % blocks * BC + tl.arange(0, BC)
    pixel = program // blocks * BP + tl.arange(0, BP)
    inside_c = c < C
    inside_pixel = pixel < pixels
    if WIDE:
        pixel = pixel.to(tl.int64)
    slope = load_vector(correction, c, inside_c, True)
    offset = load_vector(correction + C, c, inside_c, True)
    value = load_gradient(grad, y, slope, offset, pixel, c, inside_pixel, inside_c, C, C % BC == 0, True)
    store_tile(out, value.to(out.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, C % BC == 0)


@triton.jit
def _load_double(at, channel, inside):
    return tl.load(at + channel, mask=inside, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["count", "channels"])
def statistics(
    sums,  # (2, channels), float64
    weight,
    bias,
    running_mean,
    running_var,
    scale,
    shift,
    mean,
    invstd,
    count,
    channels,
    keep,  # 1 - momentum
    momentum,
    EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_VAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale, shift, mean and 1 / sqrt(var + eps), in float64 until they are stored; the running statistics follow."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    number = count.to(tl.float64)
    average = _load_double(sums, c, inside) / number
    var = _load_double(sums + channels, c, inside) / number - average * average
    var = tl.where(var < 0.0, 0.0, var)
    inverse = 1.0 / tl.sqrt(var + tl.full((BLOCK,), EPS, tl.float64))
    factor = inverse
    if HAS_WEIGHT:
        factor = inverse * _load_double(weight, c, inside)
    added = -average * factor
    if HAS_BIAS:
        added += _load_double(bias, c, inside)
    tl.store(scale + c, factor.to(tl.float32), mask=inside)
    tl.store(shift + c, added.to(tl.float32), mask=inside)
    tl.store(mean + c, average.to(tl.float32), mask=inside)
    tl.store(invstd + c, inverse.to(tl.float32), mask=inside)
    if HAS_MEAN:
        before = load_vector(running_mean, c, inside, True)
        now = before * keep + average.to(tl.float32) * momentum
        tl.store(running_mean + c, now.to(running_mean.dtype.element_ty), mask=inside)
    if HAS_VAR:
        before = load_vector(running_var, c, inside, True)
        unbiased = var * (number / tl.where(number > 2.0, number - 1.0, 1.0))
        now = before * keep + unbiased.to(tl.float32) * momentum
        tl.store(running_var + c, now.to(running_var.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "channels"])
def correction(
    grad_affine,  # (2, channels), float64
    mean,
    invstd,
    weight,
    out,  # (2, channels)
    grad_weight,
    grad_bias,
    count,
    channels,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the gradients of scale and shift mean for the raw output, and for the norm's weight and bias."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    number = count.to(tl.float64)
    average = _load_double(mean, c, inside)
    inverse = _load_double(invstd, c, inside)
    grad_shift = _load_double(grad_affine + channels, c, inside)
    grad_scale = _load_double(grad_affine, c, inside) - average * grad_shift
    factor = inverse
    if HAS_WEIGHT:
        factor = inverse * _load_double(weight, c, inside)
    # The offset goes with the slope as it is rounded, so that their sum over the pixels is what it should be.
    slope = (-inverse * inverse * factor * grad_scale / number).to(tl.float32)
    offset = -factor * grad_shift / number - slope.to(tl.float64) * average
    tl.store(out + c, slope, mask=inside)
    tl.store(out + channels + c, offset.to(tl.float32), mask=inside)
    tl.store(grad_weight + c, (grad_scale * inverse).to(tl.float32), mask=inside)
    tl.store(grad_bias + c, grad_shift.to(tl.float32), mask=inside)
