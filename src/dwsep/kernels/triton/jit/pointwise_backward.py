"""The pointwise stage's gradients: of its input, of its weight, and of both in one pass where the weight is small."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import activate, through_activation
from dwsep.kernels.triton.jit.pending import (
    add_affine,
    add_exactly,
    load_gradient,
    load_tile,
    load_vector,
    normed,
    operand,
    pending,
    store_affine,
    store_tile,
)

# One compiled kernel for all sizes of images and batches; channels are constants.
_SIZES = ["pixels", "tiles", "tiles_per_chunk", "blocks"]


@triton.jit
def _product(
    acc,
    grad,
    y,
    correction,
    weight,
    pixel,
    inside_pixel,
    c,
    inside_c,
    start,
    C: tl.constexpr,
    K: tl.constexpr,
    CORRECTED: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
):
    """Adds the product with BK outputs' gradients from ``start`` on."""
    k = start + tl.arange(0, BK)
    inside_k = k < K
    slope = load_vector(correction, k, inside_k, CORRECTED)
    offset = load_vector(correction + K, k, inside_k, CORRECTED)
    dy = load_gradient(grad, y, slope, offset, pixel, k, inside_pixel, inside_k, K, K % BK == 0, CORRECTED)
    mask = inside_k[:, None] & inside_c[None, :]
    w = tl.load(weight + (k[:, None] * C + c[None, :]), mask=mask, other=0.0).to(tl.float32)
    return tl.dot(
        operand(dy, DTYPE, WIDE_DOT, PRECISION), operand(w, DTYPE, WIDE_DOT, PRECISION), acc, input_precision=PRECISION
    )


@triton.jit
def _input_tile(
    grad,
    y,
    correction,
    x,
    weight,
    grad_x,
    tile,
    pixels,
    c,
    inside_c,
    factor,
    added,
    sums,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    CORRECTED: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """Stores a tile of x's gradient and adds the sums for scale and shift."""
    DTYPE: tl.constexpr = grad.dtype.element_ty
    EVEN: tl.constexpr = C % BC == 0
    pixel = tile * BP + tl.arange(0, BP)
    inside_pixel = pixel < pixels
    if WIDE:
        pixel = pixel.to(tl.int64)
    acc = tl.zeros((BP, BC), tl.float32)
    if K <= BK:
        acc = _product(
            acc, grad, y, correction, weight, pixel, inside_pixel, c, inside_c, 0,
            C, K, CORRECTED, DTYPE, WIDE_DOT, PRECISION, BK,
        )  # fmt: skip
    else:
        for start in range(0, K, BK):
            acc = _product(
                acc, grad, y, correction, weight, pixel, inside_pixel, c, inside_c, start,
                C, K, CORRECTED, DTYPE, WIDE_DOT, PRECISION, BK,
            )  # fmt: skip
    if AFFINE or ACTIVATION != "none":
        value = load_tile(x, pixel, c, inside_pixel, inside_c, C, EVEN)
        acc = through_activation(acc, normed(value, factor, added, AFFINE), ACTIVATION)
    if AFFINE:
        sums = add_affine(acc, value, sums)
        acc = acc * factor[None, :]
    store_tile(grad_x, acc.to(grad_x.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, EVEN)
    return sums


@triton.jit(do_not_specialize=_SIZES)
def input_gradient(
    grad,  # (pixels, K), dense
    y,  # (pixels, K), dense
    correction,  # (2, K)
    x,  # (pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    weight,  # (K, C)
    grad_x,  # (pixels, C), dense
    partial,  # (chunks, 2, C), float64
    pixels,
    tiles,
    tiles_per_chunk,
    blocks,  # of input channels
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    CORRECTED: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    SINGLE: tl.constexpr,  # a chunk is one tile
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """A program walks its chunk's tiles of BP pixels, for BC input channels; the blocks of a tile run side by side."""
    program = tl.program_id(0)
    chunk = program // blocks
    c = program % blocks * BC + tl.arange(0, BC)
    inside_c = c < C
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    zeros = tl.zeros((BC,), tl.float32)
    sums = (zeros, zeros, zeros, zeros)
    first = chunk * tiles_per_chunk
    if SINGLE:
        sums = _input_tile(
            grad, y, correction, x, weight, grad_x, first, pixels, c, inside_c, factor, added, sums,
            C, K, ACTIVATION, AFFINE, CORRECTED, WIDE, WIDE_DOT, PRECISION, BP, BC, BK,
        )  # fmt: skip
    else:
        for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
            sums = _input_tile(
                grad, y, correction, x, weight, grad_x, tile, pixels, c, inside_c, factor, added, sums,
                C, K, ACTIVATION, AFFINE, CORRECTED, WIDE, WIDE_DOT, PRECISION, BP, BC, BK,
            )  # fmt: skip
    if AFFINE:
        store_affine(partial, chunk, c, inside_c, sums, C)


@triton.jit(do_not_specialize=[*_SIZES, "channel_blocks"])
def weight_gradient(
    grad,  # (pixels, K), dense
    y,  # (pixels, K), dense
    correction,  # (2, K)
    x,  # (pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    partial,  # (chunks, K * C + HAS_BIAS * K), float32
    pixels,
    tiles,
    tiles_per_chunk,
    blocks,  # of outputs
    channel_blocks,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    CORRECTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """A program owns BK x BC of the weight and walks its chunk's tiles of BP pixels."""
    DTYPE: tl.constexpr = grad.dtype.element_ty
    program = tl.program_id(0)
    k = program % blocks * BK + tl.arange(0, BK)
    program = program // blocks
    channel_block = program % channel_blocks
    chunk = program // channel_blocks
    c = channel_block * BC + tl.arange(0, BC)
    inside_k = k < K
    inside_c = c < C
    slope = load_vector(correction, k, inside_k, CORRECTED)
    offset = load_vector(correction + K, k, inside_k, CORRECTED)
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    acc = tl.zeros((BK, BC), tl.float32)
    of_bias = tl.zeros((BK,), tl.float32)
    bias_rest = tl.zeros((BK,), tl.float32)

    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        pixel = tile * BP + tl.arange(0, BP)
        inside_pixel = pixel < pixels
        if WIDE:
            pixel = pixel.to(tl.int64)
        dy = load_gradient(grad, y, slope, offset, pixel, k, inside_pixel, inside_k, K, K % BK == 0, CORRECTED)
        value = load_tile(x, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
        z = pending(value, factor, added, AFFINE, ACTIVATION)
        acc = tl.dot(
            tl.trans(operand(dy, DTYPE, WIDE_DOT, PRECISION)),
            operand(z, DTYPE, WIDE_DOT, PRECISION),
            acc,
            input_precision=PRECISION,
        )
        if HAS_BIAS:
            of_bias, bias_rest = add_exactly(of_bias, bias_rest, tl.sum(dy, 0))

    at = partial + chunk.to(tl.int64) * (K * C + HAS_BIAS * K)
    mask = inside_k[:, None] & inside_c[None, :]
    tl.store(at + (k[:, None] * C + c[None, :]), acc, mask=mask)
    if HAS_BIAS:
        tl.store(at + K * C + k, of_bias + bias_rest, mask=inside_k & (channel_block == 0))


@triton.jit(do_not_specialize=["pixels", "tiles", "tiles_per_chunk"])
def both_gradients(
    grad,  # (pixels, K), dense
    y,  # (pixels, K), dense
    correction,  # (2, K)
    x,  # (pixels, C), dense
    scale,  # (C,)
    shift,  # (C,)
    weight,  # (K, C)
    grad_x,  # (pixels, C), dense
    partial,  # (chunks, 2, C), float64
    partial_weight,  # (chunks, K * C + HAS_BIAS * K), float32
    pixels,
    tiles,
    tiles_per_chunk,
    C: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    CORRECTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,  # at least C
    BK: tl.constexpr,  # at least K
):
    """``input_gradient`` and ``weight_gradient`` of a weight that one program holds: every tensor is read once."""
    DTYPE: tl.constexpr = grad.dtype.element_ty
    chunk = tl.program_id(0)
    k = tl.arange(0, BK)
    c = tl.arange(0, BC)
    inside_k = k < K
    inside_c = c < C
    slope = load_vector(correction, k, inside_k, CORRECTED)
    offset = load_vector(correction + K, k, inside_k, CORRECTED)
    factor = load_vector(scale, c, inside_c, AFFINE)
    added = load_vector(shift, c, inside_c, AFFINE)
    at_weight = k[:, None] * C + c[None, :]
    mask = inside_k[:, None] & inside_c[None, :]
    w = operand(tl.load(weight + at_weight, mask=mask, other=0.0).to(tl.float32), DTYPE, WIDE_DOT, PRECISION)
    acc = tl.zeros((BK, BC), tl.float32)
    of_bias = tl.zeros((BK,), tl.float32)
    bias_rest = tl.zeros((BK,), tl.float32)
    zeros = tl.zeros((BC,), tl.float32)
    sums = (zeros, zeros, zeros, zeros)

    first = chunk * tiles_per_chunk
    for tile in range(first, tl.minimum(first + tiles_per_chunk, tiles)):
        pixel = tile * BP + tl.arange(0, BP)
        inside_pixel = pixel < pixels
        if WIDE:
            pixel = pixel.to(tl.int64)
        dy = load_gradient(grad, y, slope, offset, pixel, k, inside_pixel, inside_k, K, K % BK == 0, CORRECTED)
        value = load_tile(x, pixel, c, inside_pixel, inside_c, C, C % BC == 0)
        before = normed(value, factor, added, AFFINE)
        if HAS_BIAS:
            of_bias, bias_rest = add_exactly(of_bias, bias_rest, tl.sum(dy, 0))
        narrow = operand(dy, DTYPE, WIDE_DOT, PRECISION)
        z = operand(activate(before, ACTIVATION), DTYPE, WIDE_DOT, PRECISION)
        acc = tl.dot(tl.trans(narrow), z, acc, input_precision=PRECISION)
        out = through_activation(tl.dot(narrow, w, input_precision=PRECISION), before, ACTIVATION)
        if AFFINE:
            sums = add_affine(out, value, sums)
            out = out * factor[None, :]
        store_tile(grad_x, out.to(grad_x.dtype.element_ty), pixel, c, inside_pixel, inside_c, C, C % BC == 0)

    if AFFINE:
        store_affine(partial, chunk, c, inside_c, sums, C)
    at = partial_weight + chunk.to(tl.int64) * (K * C + HAS_BIAS * K)
    tl.store(at + at_weight, acc, mask=mask)
    if HAS_BIAS:
        tl.store(at + K * C + k, of_bias + bias_rest, mask=inside_k)
