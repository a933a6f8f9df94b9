"""What a stage leaves pending as a tensor, plus a residual, and the way back."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import through_activation
from dwsep.kernels.triton.jit.pending import (
    add_affine,
    load_tile,
    load_vector,
    normed,
    pending,
    store_affine,
    store_tile,
)


@triton.jit(do_not_specialize=["pixels", "blocks"])
def output(
    x,  # (pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    residual,  # (pixels, C), dense
    out,  # (pixels, C), dense
    pixels,
    blocks,  # of channels
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """``activation(scale * x + shift) + residual``, rounded once."""
    program = tl.program_id(0)
    c = program % blocks * BC + tl.arange(0, BC)
    pixel = program // blocks * BP + tl.arange(0, BP)
    inside_c = c < C
    inside_pixel = pixel < pixels
    if WIDE:
        pixel = pixel.to(tl.int64)
    EVEN: tl.constexpr = C % BC == 0
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    value = pending(load_tile(x, pixel, c, inside_pixel, inside_c, C, EVEN), factor, added, AFFINE, ACTIVATION)
    if RESIDUAL:
        value += load_tile(residual, pixel, c, inside_pixel, inside_c, C, EVEN)
    store_tile(out, value.to(out.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, EVEN)


@triton.jit(do_not_specialize=["pixels", "tiles", "tiles_per_chunk", "blocks"])
def output_gradient(
    grad,  # (pixels, C), dense
    x,  # (pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    grad_x,  # (pixels, C), dense
    partial,  # (chunks, 2, C), float64
    pixels,
    tiles,
    tiles_per_chunk,
    blocks,  # of channels
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """The gradient of x, and a chunk's sums of what those of scale and shift are."""
    EVEN: tl.constexpr = C % BC == 0
    program = tl.program_id(0)
    chunk = program // blocks
    c = program % blocks * BC + tl.arange(0, BC)
    inside_c = c < C
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    zeros = tl.zeros((BC,), tl.float32)
    sums = (zeros, zeros, zeros, zeros)
    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        pixel = tile * BP + tl.arange(0, BP)
        inside_pixel = pixel < pixels
        if WIDE:
            pixel = pixel.to(tl.int64)
        before = load_tile(grad, pixel, c, inside_pixel, inside_c, C, EVEN)
        if AFFINE or ACTIVATION != "none":
            value = load_tile(x, pixel, c, inside_pixel, inside_c, C, EVEN)
            before = through_activation(before, normed(value, factor, added, AFFINE), ACTIVATION)
        if AFFINE:
            sums = add_affine(before, value, sums)
            before = before * factor[None, :]
        store_tile(grad_x, before.to(grad_x.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, EVEN)
    if AFFINE:
        store_affine(partial, chunk, c, inside_c, sums, C)
