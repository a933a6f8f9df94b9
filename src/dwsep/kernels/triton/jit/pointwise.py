"""The pointwise stage: y = W z + bias of pixels by channels, its input's norm and activation applied while loading."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.pending import (
    add_moments,
    load_tile,
    load_vector,
    operand,
    pending,
    store_moments,
    store_tile,
)

# One compiled kernel for all sizes of images and batches; channels are constants.
_SIZES = ["pixels", "tiles", "tiles_per_chunk", "blocks"]


@triton.jit
def _product(
    acc,
    x,
    weight,
    scale,
    shift,
    pixel,
    inside_pixel,
    k,
    inside_k,
    start,
    C: tl.constexpr,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BC: tl.constexpr,
):
    """Adds the product with BC input channels from ``start`` on."""
    c = start + tl.arange(0, BC)
    inside_c = c < C
    value = load_tile(x, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
    z = pending(
        value,
        load_vector(scale, c, inside_c, AFFINE),
        load_vector(shift, c, inside_c, AFFINE),
        AFFINE,
        ACTIVATION,
    )
    mask = inside_c[:, None] & inside_k[None, :]
    w = tl.load(weight + (k[None, :] * C + c[:, None]), mask=mask, other=0.0).to(tl.float32)
    return tl.dot(
        operand(z, DTYPE, WIDE_DOT, PRECISION), operand(w, DTYPE, WIDE_DOT, PRECISION), acc, input_precision=PRECISION
    )


@triton.jit
def _tile(
    x,
    weight,
    scale,
    shift,
    added,
    y,
    tile,
    is_first,
    pixels,
    k,
    inside_k,
    moments,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """Stores a tile's outputs and adds their sums."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    pixel = tile * BP + tl.arange(0, BP)
    inside_pixel = pixel < pixels
    if WIDE:
        pixel = pixel.to(tl.int64)
    acc = tl.zeros((BP, BK), tl.float32)
    if C <= BC:
        acc = _product(
            acc, x, weight, scale, shift, pixel, inside_pixel, k, inside_k, 0,
            C, AFFINE, ACTIVATION, DTYPE, WIDE_DOT, PRECISION, BC,
        )  # fmt: skip
    else:
        for start in range(0, C, BC):
            acc = _product(
                acc, x, weight, scale, shift, pixel, inside_pixel, k, inside_k, start,
                C, AFFINE, ACTIVATION, DTYPE, WIDE_DOT, PRECISION, BC,
            )  # fmt: skip
    if HAS_BIAS:
        acc += added[None, :]
    out = acc.to(y.dtype.element_ty)
    store_tile(y, out, pixel, k, inside_pixel, inside_k, K, K % BK == 0)
    # The statistics are those of the values that are stored.
    return add_moments(out.to(tl.float32), inside_pixel, is_first, moments, BP)


@triton.jit(do_not_specialize=_SIZES)
def forward(
    x,  # (pixels, C), dense
    weight,  # (K, C)
    scale,  # (C,)
    shift,  # (C,)
    bias,  # (K,)
    y,  # (pixels, K), dense
    partial,  # (chunks, 2, K), float64
    pixels,
    tiles,
    tiles_per_chunk,
    blocks,  # of outputs
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_DOT: tl.constexpr,  # the GPU has no products of x's type
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,  # a chunk is one tile
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """A program walks its chunk's tiles of BP pixels, for BK outputs; the blocks of a tile run side by side."""
    program = tl.program_id(0)
    chunk = program // blocks
    k = program % blocks * BK + tl.arange(0, BK)
    inside_k = k < K
    added = load_vector(bias, k, inside_k, HAS_BIAS)
    zeros = tl.zeros((BK,), tl.float32)
    moments = (zeros, zeros, zeros, zeros, zeros)
    first = chunk * tiles_per_chunk
    last = tl.minimum(first + tiles_per_chunk, tiles)
    if SINGLE:  # nothing is carried, which leaves its registers to a larger tile
        moments = _tile(
            x, weight, scale, shift, added, y, first, True, pixels, k, inside_k, moments,
            C, K, ACTIVATION, AFFINE, HAS_BIAS, WIDE, WIDE_DOT, PRECISION, BP, BC, BK,
        )  # fmt: skip
    else:
        for tile in range(first, last):
            moments = _tile(
                x, weight, scale, shift, added, y, tile, tile == first, pixels, k, inside_k, moments,
                C, K, ACTIVATION, AFFINE, HAS_BIAS, WIDE, WIDE_DOT, PRECISION, BP, BC, BK,
            )  # fmt: skip
    count = tl.minimum(last * BP, pixels) - first * BP
    store_moments(partial, chunk, k, inside_k, count, moments, K)
