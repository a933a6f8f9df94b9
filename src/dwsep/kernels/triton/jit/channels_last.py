"""Depthwise forward and input gradient, channels innermost: a thread holds Q output columns of a few channels."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import activate, through_activation
from dwsep.kernels.triton.jit.axis import class_first, class_first_tap, within

# One compiled kernel for all sizes: what matters of them to the compiler are constants.
_SIZES = [
    "src_h",
    "src_w",
    "dst_h",
    "dst_w",
    "low_h",
    "low_w",
    "channel_blocks",
    "col_blocks",
    "row_blocks",
]


@triton.jit(do_not_specialize=_SIZES)
def correlate(
    src,  # (N, src_h, src_w, src_channels), dense
    weight,  # (KH * KW, weight channels), float32
    bias,  # (weight channels,)
    outer,  # with GRADIENT the output's gradient, dense like dst
    dst,  # (N, dst_h, dst_w, dst_channels), dense
    src_h,
    src_w,
    dst_h,
    dst_w,
    low_h,
    low_w,
    channel_blocks,
    col_blocks,
    row_blocks,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    GH: tl.constexpr,  # greatest common divisors of stride and dilation
    GW: tl.constexpr,
    INVERSE_H: tl.constexpr,  # of D / G modulo S / G
    INVERSE_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
    SRC_CHANNELS: tl.constexpr,
    DST_CHANNELS: tl.constexpr,
    Q: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    BC: tl.constexpr,
    KC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Forward pass, or with TRANSPOSED the gradient of the input from that of the output.

    With GRADIENT the result is ``outer`` times the activation's derivative at the forward pass's raw output.
    """
    SPACING: tl.constexpr = DW // GW
    UNIT: tl.constexpr = SPACING if TRANSPOSED else DW
    STEP: tl.constexpr = 1 if TRANSPOSED else SW // GW
    TAPS_W: tl.constexpr = (KW + SW // GW - 1) // (SW // GW) if TRANSPOSED else KW
    CHUNKS: tl.constexpr = (TAPS_W + KC - 1) // KC
    MASKED_TAPS: tl.constexpr = (TRANSPOSED and SW > 1) or CHUNKS * KC != TAPS_W
    OUT_W: tl.constexpr = SW if TRANSPOSED else 1
    WEIGHT_CHANNELS: tl.constexpr = SRC_CHANNELS if TRANSPOSED else DST_CHANNELS
    EVEN: tl.constexpr = DST_CHANNELS % BC == 0  # no channel lies beyond the last

    tile = tl.program_id(0)
    block = tile % channel_blocks
    tile = tile // channel_blocks
    residue = tile % SPACING
    tile = tile // SPACING
    col_block = tile % col_blocks
    tile = tile // col_blocks
    row_block = tile % row_blocks
    image = tile // row_blocks
    if WIDE:
        image = image.to(tl.int64)

    lane = tl.arange(0, RB * JB)
    row = row_block * RB + lane // JB
    group = col_block * JB + lane % JB
    channel = block * BC + tl.arange(0, BC)
    inside = channel < DST_CHANNELS

    if TRANSPOSED:
        rho_h = tl.program_id(1) // SW
        rho_w = tl.program_id(1) % SW
        first_h = class_first(rho_h, low_h, SH)
        first_w = class_first(rho_w, low_w, SW)
        tap_h = class_first_tap(rho_h, INVERSE_H, KH, SH, GH)
        tap_w = class_first_tap(rho_w, INVERSE_W, KW, SW, GW)
        taps_h = (KH - tap_h + SH // GH - 1) // (SH // GH)
        in_row = row + (first_h + low_h - DH * tap_h) // SH
        row_step = -(DH // GH)
        origin = residue + (first_w + low_w - DW * tap_w) // SW - UNIT * (TAPS_W - 1)
        out_row = SH * row + first_h
        out_first = first_w
    else:
        tap_h = 0
        tap_w = 0
        taps_h = KH
        in_row = SH * row - low_h
        row_step = DH
        origin = SW * residue - low_w
        out_row = row
        out_first = 0

    in_col = origin + UNIT * STEP * Q * group
    acc = ()
    for _q in tl.static_range(Q):
        acc += (tl.zeros((RB * JB, BC), tl.float32),)

    for m in tl.static_range(MULTIPLIER if TRANSPOSED else 1):
        if TRANSPOSED:
            src_channel = channel * MULTIPLIER + m
            weight_channel = src_channel
        else:
            src_channel = channel // MULTIPLIER
            weight_channel = channel
        for t in tl.range(0, taps_h, loop_unroll_factor=UNROLL):
            kh = tap_h + (SH // GH if TRANSPOSED else 1) * t
            at = in_row + row_step * t
            row_inside = within(at, src_h)
            row_offset = (image * src_h + at) * src_w
            for chunk in range(CHUNKS):
                taps = ()
                for i in tl.static_range(KC):
                    if TRANSPOSED:
                        kw = tap_w + (SW // GW) * (TAPS_W - 1 - (chunk * KC + i))
                    else:
                        kw = chunk * KC + i
                    mask = inside
                    if MASKED_TAPS:
                        mask = inside & (kw >= 0) & (kw < KW)
                    at_tap = weight + (kh * KW + kw) * WEIGHT_CHANNELS + weight_channel
                    taps += (tl.load(at_tap, mask=mask, other=0.0),)
                col = in_col + UNIT * KC * chunk
                first = src + ((row_offset + col)[:, None] * SRC_CHANNELS + src_channel[None, :])
                for i in tl.static_range(STEP * (Q - 1) + KC):
                    mask = (row_inside & within(col + UNIT * i, src_w))[:, None]
                    if not EVEN:
                        mask = mask & inside[None, :]
                    value = tl.load(first + UNIT * SRC_CHANNELS * i, mask=mask, other=0.0).to(tl.float32)
                    updated = ()
                    for q in tl.static_range(Q):
                        if i >= STEP * q and i < STEP * q + KC:
                            updated += (acc[q] + value * taps[i - STEP * q][None, :],)
                        else:
                            updated += (acc[q],)
                    acc = updated

    if HAS_BIAS:
        shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    out_col = OUT_W * (SPACING * Q * group + residue) + out_first
    offset = ((image * dst_h + out_row) * dst_w + out_col)[:, None] * DST_CHANNELS + channel[None, :]
    for q in tl.static_range(Q):
        mask = ((out_row < dst_h) & (out_col + OUT_W * SPACING * q < dst_w))[:, None]
        if not EVEN:
            mask = mask & inside[None, :]
        at = offset + OUT_W * SPACING * DST_CHANNELS * q
        value = acc[q]
        if HAS_BIAS:
            value += shift[None, :]
        if GRADIENT:
            value = through_activation(tl.load(outer + at, mask=mask, other=0.0).to(tl.float32), value, ACTIVATION)
        else:
            value = activate(value, ACTIVATION)
        tl.store(dst + at, value.to(dst.dtype.element_ty), mask=mask)
