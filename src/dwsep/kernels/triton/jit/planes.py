"""Depthwise forward and input gradient, contiguous tensors: a thread holds Q output columns of one row."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import activate, through_activation
from dwsep.kernels.triton.jit.axis import class_first, class_first_tap, within
from dwsep.kernels.triton.jit.vectors import columns_of, tile_of

# One compiled kernel for all sizes: what matters of them to the compiler are constants.
_SIZES = [
    "planes",
    "dst_channels",
    "src_h",
    "src_w",
    "dst_h",
    "dst_w",
    "low_h",
    "low_w",
    "col_blocks",
    "row_blocks",
]


@triton.jit(do_not_specialize=_SIZES)
def correlate_planes(
    src,  # (N * src_channels, src_h, src_w), dense
    weight,  # (weight channels, KH * KW)
    bias,  # (weight channels,)
    outer,  # with GRADIENT the output's gradient, dense like dst
    dst,  # (N * dst_channels, dst_h, dst_w), dense
    planes,  # of dst
    dst_channels,
    src_h,
    src_w,
    dst_h,
    dst_w,
    low_h,
    low_w,
    col_blocks,
    row_blocks,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    GH: tl.constexpr,
    GW: tl.constexpr,
    INVERSE_H: tl.constexpr,
    INVERSE_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDE: tl.constexpr,
    SHIFT: tl.constexpr,  # -1, or where rows are whole vectors of Q columns, where in one the first tap lies
    Q: tl.constexpr,
    PB: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    KC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """As ``channels_last.correlate``. Classes and residues of columns are neighbouring threads, so loads coalesce."""
    SPACING: tl.constexpr = DW // GW
    UNIT: tl.constexpr = SPACING if TRANSPOSED else DW
    STEP: tl.constexpr = 1 if TRANSPOSED else SW // GW
    STEPS_H: tl.constexpr = SH // GH if TRANSPOSED else 1
    TAPS_H: tl.constexpr = (KH + STEPS_H - 1) // STEPS_H
    TAPS_W: tl.constexpr = (KW + SW // GW - 1) // (SW // GW) if TRANSPOSED else KW
    CHUNKS: tl.constexpr = (TAPS_W + KC - 1) // KC
    MASKED_TAPS: tl.constexpr = (TRANSPOSED and SW > 1) or CHUNKS * KC != TAPS_W
    OUT_W: tl.constexpr = SW if TRANSPOSED else 1
    WINDOW: tl.constexpr = STEP * (Q - 1) + KC
    LANES: tl.constexpr = PB * RB * JB

    program = tl.program_id(0)
    col_block = program % col_blocks
    program = program // col_blocks
    row_block = program % row_blocks
    plane_block = program // row_blocks
    if WIDE:
        plane_block = plane_block.to(tl.int64)
    lane = tl.arange(0, LANES)
    plane = plane_block * PB + lane // (RB * JB)
    row = row_block * RB + lane // JB % RB
    part = col_block * JB + lane % JB
    inside = plane < planes
    channel = (plane % dst_channels).to(tl.int32)

    residue = part // OUT_W % SPACING
    group = part // (OUT_W * SPACING)
    if TRANSPOSED:
        rho_h = (row + low_h % SH + SH) % SH
        rho_w = part % SW
        first_w = class_first(rho_w, low_w, SW)
        tap_h = class_first_tap(rho_h, INVERSE_H, KH, SH, GH)
        tap_w = class_first_tap(rho_w, INVERSE_W, KW, SW, GW)
        # Where a class has no taps this is no whole number, and every tap is masked.
        in_row = (row + low_h - DH * tap_h) // SH
        row_step = -(DH // GH)
        origin = residue + (first_w + low_w - DW * tap_w) // SW - UNIT * (TAPS_W - 1)
    else:
        tap_h = row * 0
        tap_w = part * 0
        first_w = part * 0
        in_row = SH * row - low_h
        row_step = DH
        origin = SW * residue - low_w
    in_col = origin + UNIT * STEP * Q * group
    # With vectors there is neither stride nor dilation, and the first tap is SHIFT columns into one of them.
    in_vector = group + ((low_w - KW + 1 if TRANSPOSED else -low_w) - SHIFT) // Q

    acc = ()
    for _q in tl.static_range(Q):
        acc += (tl.zeros((LANES,), tl.float32),)

    for m in tl.static_range(MULTIPLIER if TRANSPOSED else 1):
        if TRANSPOSED:
            src_plane = plane * MULTIPLIER + m
            weight_row = weight + (channel * MULTIPLIER + m) * (KH * KW)
        else:
            src_plane = plane // MULTIPLIER
            weight_row = weight + channel * (KH * KW)
        for t in tl.range(0, TAPS_H, loop_unroll_factor=UNROLL):
            kh = tap_h + STEPS_H * t
            at = in_row + row_step * t
            row_inside = inside & within(at, src_h)
            if TRANSPOSED and SH > 1:
                row_inside = row_inside & (kh < KH)
            row_offset = (src_plane * src_h + at) * src_w
            for chunk in range(CHUNKS):
                taps = ()
                for i in tl.static_range(KC):
                    if TRANSPOSED:
                        kw = tap_w + (SW // GW) * (TAPS_W - 1 - (chunk * KC + i))
                    else:
                        kw = tap_w + chunk * KC + i
                    mask = row_inside
                    if MASKED_TAPS:
                        mask = row_inside & (kw >= 0) & (kw < KW)
                    taps += (tl.load(weight_row + (kh * KW + kw), mask=mask, other=0.0).to(tl.float32),)
                values = ()
                if SHIFT >= 0:
                    vector = in_vector + chunk * (KC // Q)
                    offset = (src_plane * src_h + at) * (src_w // Q) + vector
                    first = src + (offset[:, None] * Q + tl.arange(0, Q)[None, :])
                    for v in tl.static_range((SHIFT + WINDOW + Q - 1) // Q):
                        mask = (row_inside & within(vector + v, src_w // Q))[:, None]
                        tile = tl.load(first + Q * v, mask=mask, other=0.0)
                        values += columns_of(tile.to(tl.float32), LANES, Q)
                else:
                    col = in_col + UNIT * KC * chunk
                    first = src + (row_offset + col)
                    for i in tl.static_range(WINDOW):
                        mask = row_inside & within(col + UNIT * i, src_w)
                        values += (tl.load(first + UNIT * i, mask=mask, other=0.0).to(tl.float32),)
                updated = ()
                for q in tl.static_range(Q):
                    total = acc[q]
                    for i in tl.static_range(KC):
                        total += values[(SHIFT if SHIFT >= 0 else 0) + STEP * q + i] * taps[i]
                    updated += (total,)
                acc = updated

    if HAS_BIAS:
        shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
        biased = ()
        for q in tl.static_range(Q):
            biased += (acc[q] + shift,)
        acc = biased
    row_offset = (plane * dst_h + row) * dst_w
    if SHIFT >= 0:
        mask = inside & (row < dst_h) & (group < dst_w // Q)
        offset = (plane * dst_h + row) * (dst_w // Q) + group
        offset = offset[:, None] * Q + tl.arange(0, Q)[None, :]
        tile = tile_of(acc, LANES, Q)
        if GRADIENT:
            outside = tl.load(outer + offset, mask=mask[:, None], other=0.0).to(tl.float32)
            tile = through_activation(outside, tile, ACTIVATION)
        else:
            tile = activate(tile, ACTIVATION)
        tl.store(dst + offset, tile.to(dst.dtype.element_ty), mask=mask[:, None])
    else:
        for q in tl.static_range(Q):
            col = OUT_W * (SPACING * (Q * group + q) + residue) + first_w
            mask = inside & (row < dst_h) & (col < dst_w)
            value = acc[q]
            if GRADIENT:
                outside = tl.load(outer + (row_offset + col), mask=mask, other=0.0).to(tl.float32)
                value = through_activation(outside, value, ACTIVATION)
            else:
                value = activate(value, ACTIVATION)
            tl.store(dst + (row_offset + col), value.to(dst.dtype.element_ty), mask=mask)
