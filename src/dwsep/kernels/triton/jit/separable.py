"""A separable convolution in one kernel, channels innermost: the depthwise result never leaves the multiprocessor.

A program computes all output channels of a tile of pixels. Block after block of inner channels is convolved in
registers, as ``channels_last`` does it, and goes into a matrix product with that block's pointwise weights.
"""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import activate
from dwsep.kernels.triton.jit.axis import within

# One compiled kernel for all sizes: what matters of them to the compiler are constants.
_SIZES = [
    "src_h",
    "src_w",
    "dst_h",
    "dst_w",
    "low_h",
    "low_w",
    "residues",
    "col_blocks",
    "row_blocks",
]


@triton.jit(do_not_specialize=_SIZES)
def separable(
    x,  # (N, src_h, src_w, INNER / MULTIPLIER), dense
    weight,  # (INNER, KH * KW)
    bias,  # (INNER,)
    pointwise,  # (OUT, INNER)
    pointwise_bias,  # (OUT,)
    dst,  # (N, dst_h, dst_w, OUT), dense
    src_h,
    src_w,
    dst_h,
    dst_w,
    low_h,
    low_w,
    residues,
    col_blocks,
    row_blocks,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    GW: tl.constexpr,  # greatest common divisor of stride and dilation
    MULTIPLIER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POINTWISE_BIAS: tl.constexpr,
    INNER_ACTIVATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products
    WIDE: tl.constexpr,
    INNER: tl.constexpr,
    OUT: tl.constexpr,
    Q: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """A program computes RB rows of JB groups of Q columns."""
    CHANNELS: tl.constexpr = INNER // MULTIPLIER
    SPACING: tl.constexpr = DW // GW
    STEP: tl.constexpr = SW // GW

    tile = tl.program_id(0)
    residue = tile % residues
    tile = tile // residues
    col_block = tile % col_blocks
    tile = tile // col_blocks
    row_block = tile % row_blocks
    image = tile // row_blocks
    if WIDE:
        image = image.to(tl.int64)
    lane = tl.arange(0, RB * JB)
    row = row_block * RB + lane // JB
    col = SPACING * Q * (col_block * JB + lane % JB) + residue
    in_row = SH * row - low_h
    in_col = SW * col - low_w
    out = tl.arange(0, BK)

    acc = ()
    for _q in tl.static_range(Q):
        acc += (tl.zeros((RB * JB, BK), tl.float32),)
    for start in tl.range(0, INNER, BC, num_stages=1):
        channel = start + tl.arange(0, BC)
        inside = channel < INNER
        inner = ()
        for _q in tl.static_range(Q):
            inner += (tl.zeros((RB * JB, BC), tl.float32),)
        for kh in range(KH):
            at = in_row + DH * kh
            row_inside = within(at, src_h)
            first = x + (((image * src_h + at) * src_w + in_col)[:, None] * CHANNELS + (channel // MULTIPLIER)[None, :])
            taps = ()
            for kw in tl.static_range(KW):
                at_tap = weight + channel * (KH * KW) + kh * KW + kw
                taps += (tl.load(at_tap, mask=inside, other=0.0).to(tl.float32)[None, :],)
            for i in tl.static_range(STEP * (Q - 1) + KW):
                mask = (row_inside & within(in_col + DW * i, src_w))[:, None] & inside[None, :]
                value = tl.load(first + DW * CHANNELS * i, mask=mask, other=0.0).to(tl.float32)
                updated = ()
                for q in tl.static_range(Q):
                    if i >= STEP * q and i - STEP * q < KW:
                        updated += (inner[q] + value * taps[i - STEP * q],)
                    else:
                        updated += (inner[q],)
                inner = updated
        mask = inside[:, None] & (out < OUT)[None, :]
        factor = tl.load(pointwise + out[None, :] * INNER + channel[:, None], mask=mask, other=0.0)
        added = tl.zeros((BC,), tl.float32)
        if HAS_BIAS:
            added = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
        updated = ()
        for q in tl.static_range(Q):
            # Channels beyond the last meet weights of zero.
            rounded = activate(inner[q] + added[None, :], INNER_ACTIVATION).to(x.dtype.element_ty)
            total = tl.dot(rounded, factor, acc[q], input_precision=PRECISION)
            if RESIDUAL == "depthwise":
                unit = tl.where(channel[:, None] == out[None, :], 1.0, 0.0).to(x.dtype.element_ty)
                total = tl.dot(rounded, unit, total, input_precision=PRECISION)
            updated += (total,)
        acc = updated

    shift = tl.zeros((BK,), tl.float32)
    if HAS_POINTWISE_BIAS:
        shift = tl.load(pointwise_bias + out, mask=out < OUT, other=0.0).to(tl.float32)
    offset = ((image * dst_h + row) * dst_w + col)[:, None] * OUT + out[None, :]
    for q in tl.static_range(Q):
        mask = ((row < dst_h) & (col + SPACING * q < dst_w))[:, None] & (out < OUT)[None, :]
        value = activate(acc[q] + shift[None, :], ACTIVATION)
        if RESIDUAL == "input":
            value += tl.load(x + offset + SPACING * OUT * q, mask=mask, other=0.0).to(tl.float32)
        tl.store(dst + offset + SPACING * OUT * q, value.to(dst.dtype.element_ty), mask=mask)
