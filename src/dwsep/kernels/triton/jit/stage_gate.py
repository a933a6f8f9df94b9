"""Squeeze and excite on what a stage leaves pending: means, the product with the gate, and their way back."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import through_activation
from dwsep.kernels.triton.jit.pending import (
    add_affine,
    add_exactly,
    load_tile,
    load_vector,
    normed,
    pending,
    rounded,
    store_affine,
    store_tile,
)

_SIZES = ["pixels", "tiles", "blocks"]


@triton.jit(do_not_specialize=_SIZES)
def image_sums(
    x,  # (N, pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    grad,  # (N, pixels, C), dense
    out,  # (N, C)
    pixels,  # of an image
    tiles,
    blocks,  # of channels
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """An image's means of ``z = activation(scale * x + shift)``, or with GRADIENT its sums of ``grad * z``."""
    program = tl.program_id(0)
    image = program // blocks
    c = program % blocks * BC + tl.arange(0, BC)
    inside_c = c < C
    if WIDE:
        image = image.to(tl.int64)
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    total = tl.zeros((BC,), tl.float32)
    rest = tl.zeros((BC,), tl.float32)
    for tile in tl.range(0, tiles, num_stages=3):
        pixel = tile * BP + tl.arange(0, BP)
        inside_pixel = pixel < pixels
        pixel = image * pixels + pixel
        value = load_tile(x, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
        value = pending(value, factor, added, AFFINE, ACTIVATION)
        if GRADIENT:
            value = value * load_tile(grad, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
        total, rest = add_exactly(total, rest, tl.sum(tl.where(inside_pixel[:, None], value, 0.0), 0))
    found = total.to(tl.float64) + rest.to(tl.float64)
    if not GRADIENT:
        found = found / pixels.to(tl.float64)
    tl.store(out + image * C + c, rounded(found, out.dtype.element_ty), mask=inside_c)


@triton.jit(do_not_specialize=_SIZES)
def gated(
    x,  # (N, pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    gate,  # (N, C)
    out,  # (N, pixels, C), dense
    pixels,  # of an image
    tiles,
    blocks,  # of channels
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """``activation(scale * x + shift) * gate``."""
    program = tl.program_id(0)
    c = program % blocks * BC + tl.arange(0, BC)
    program = program // blocks
    pixel = program % tiles * BP + tl.arange(0, BP)
    image = program // tiles
    inside_c = c < C
    inside_pixel = pixel < pixels
    if WIDE:
        image = image.to(tl.int64)
    pixel = image * pixels + pixel
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    value = load_tile(x, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
    value = (
        pending(value, factor, added, AFFINE, ACTIVATION) * load_vector(gate + image * C, c, inside_c, True)[None, :]
    )
    store_tile(out, value.to(out.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, C % BC == 0)


@triton.jit(do_not_specialize=[*_SIZES, "chunks", "tiles_per_chunk"])
def squeeze_gradient(
    grad,  # (N, pixels, C), dense
    gate,  # (N, C)
    grad_mean,  # (N, C)
    x,  # (N, pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    grad_x,  # (N, pixels, C), dense
    partial,  # (N * chunks, 2, C), float64
    pixels,  # of an image
    tiles,
    blocks,  # of channels
    chunks,  # of an image
    tiles_per_chunk,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    WIDE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """The gradient of x from those of the product with a gate and of the means, and the sums for scale and shift."""
    EVEN: tl.constexpr = C % BC == 0
    program = tl.program_id(0)
    c = program % blocks * BC + tl.arange(0, BC)
    part = program // blocks
    image = part // chunks
    first = part % chunks * tiles_per_chunk
    inside_c = c < C
    if WIDE:
        image = image.to(tl.int64)
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    opened = load_vector(gate + image * C, c, inside_c, HAS_GATE)
    share = load_vector(grad_mean + image * C, c, inside_c, HAS_MEAN) / pixels.to(tl.float32)
    zeros = tl.zeros((BC,), tl.float32)
    sums = (zeros, zeros, zeros, zeros)
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        pixel = tile * BP + tl.arange(0, BP)
        inside_pixel = pixel < pixels
        pixel = image * pixels + pixel
        before = tl.zeros((BP, BC), tl.float32) + share[None, :]
        if HAS_GATE:
            before += load_tile(grad, pixel, c, inside_pixel, inside_c, C, EVEN) * opened[None, :]
        if AFFINE or ACTIVATION != "none":
            value = load_tile(x, pixel, c, inside_pixel, inside_c, C, EVEN)
            before = through_activation(before, normed(value, factor, added, AFFINE), ACTIVATION)
        if AFFINE:
            before = tl.where(inside_pixel[:, None], before, 0.0)
            sums = add_affine(before, value, sums)
            before = before * factor[None, :]
        store_tile(grad_x, before.to(grad_x.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, EVEN)
    if AFFINE:
        store_affine(partial, part, c, inside_c, sums, C)
