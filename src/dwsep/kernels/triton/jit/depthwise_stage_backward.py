"""Backward of a depthwise stage, channels innermost: all its gradients in one walk over grad, y and x.

A thread holds Q positions of the input, for which it gathers the gradients that the taps reach: each goes into the
input's gradient with the tap, and with the input's value into the tap's. So norm and activation of the input are
computed once a position. Classes and residues are those of ``axis``.
"""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import through_activation
from dwsep.kernels.triton.jit.axis import class_first, class_first_tap, within
from dwsep.kernels.triton.jit.depthwise_stage import load_tap
from dwsep.kernels.triton.jit.pending import pending

# One compiled kernel for all sizes: what matters of them to the compiler are constants.
_SIZES = [
    "src_h",
    "src_w",
    "dst_h",
    "dst_w",
    "low_h",
    "low_w",
    "channel_blocks",
    "residues",
    "col_blocks",
    "row_blocks",
    "tiles",
    "tiles_per_chunk",
    "chunks",
]


@triton.jit
def _compensated(total, rest, value):
    """Kahan's sum: ``total`` plus ``value``, and what rounding took from it, which the next sum makes good."""
    value = value - rest
    grown = total + value
    return grown, (grown - total) - value


@triton.jit(do_not_specialize=_SIZES)
def depthwise_stage_backward(
    grad,  # (N, src_h, src_w, CHANNELS), dense
    y,  # like grad
    correction,  # (2, CHANNELS), float32
    x,  # (N, dst_h, dst_w, CHANNELS), dense
    scale,  # (CHANNELS,), float32
    shift,
    weight,  # taps by channels, at TAP_STRIDE and CHANNEL_STRIDE
    grad_x,  # like x
    partial,  # (chunks, KH * KW + HAS_BIAS, CHANNELS), float32
    sums,  # (classes * chunks, 2, CHANNELS), float32
    src_h,
    src_w,
    dst_h,
    dst_w,
    low_h,
    low_w,
    channel_blocks,
    residues,
    col_blocks,
    row_blocks,
    tiles,
    tiles_per_chunk,
    chunks,
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
    CORRECTED: tl.constexpr,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WANTS_X: tl.constexpr,
    WANTS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_CLASS: tl.constexpr,  # which class meets every gradient, and at which of its taps
    BIAS_TAP: tl.constexpr,
    WIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAP_STRIDE: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    Q: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    BC: tl.constexpr,
    HOIST: tl.constexpr,  # whether all taps stay in registers
):
    """A program computes the tiles of its chunk in one class, and sums what belongs to its taps."""
    SPACING: tl.constexpr = DW // GW
    UNIT_H: tl.constexpr = DH // GH
    SKIP_H: tl.constexpr = SH // GH  # from one of a class's taps to its next
    SKIP_W: tl.constexpr = SW // GW
    TAPS_H: tl.constexpr = (KH + SKIP_H - 1) // SKIP_H
    TAPS_W: tl.constexpr = (KW + SKIP_W - 1) // SKIP_W
    EVEN: tl.constexpr = CHANNELS % BC == 0  # no channel lies beyond the last
    PENDING: tl.constexpr = AFFINE or ACTIVATION != "none"

    # The classes of one chunk read the same gradients, so they run side by side.
    program = tl.program_id(0)
    block = program % channel_blocks
    program = program // channel_blocks
    of_class = program % (SH * SW)
    chunk = program // (SH * SW)
    rho_h = of_class // SW
    rho_w = of_class % SW
    first_h = class_first(rho_h, low_h, SH)
    first_w = class_first(rho_w, low_w, SW)
    tap_h = class_first_tap(rho_h, INVERSE_H, KH, SH, GH)
    tap_w = class_first_tap(rho_w, INVERSE_W, KW, SW, GW)
    base_h = (first_h + low_h - DH * tap_h) // SH - UNIT_H * (TAPS_H - 1)
    base_w = (first_w + low_w - DW * tap_w) // SW - SPACING * (TAPS_W - 1)

    lane = tl.arange(0, RB * JB)
    channel = block * BC + tl.arange(0, BC)
    inside = channel < CHANNELS
    taps_at = weight + (tap_h * KW + tap_w) * TAP_STRIDE + channel * CHANNEL_STRIDE
    slope = tl.zeros((BC,), tl.float32)
    constant = tl.zeros((BC,), tl.float32)
    if CORRECTED:
        slope = tl.load(correction + channel, mask=inside, other=0.0)
        constant = tl.load(correction + CHANNELS + channel, mask=inside, other=0.0)
    factor = tl.zeros((BC,), tl.float32)
    offset = tl.zeros((BC,), tl.float32)
    if AFFINE:
        factor = tl.load(scale + channel, mask=inside, other=0.0)
        offset = tl.load(shift + channel, mask=inside, other=0.0)
    held = ()
    if HOIST and WANTS_X:
        for th in tl.static_range(TAPS_H):
            for tw in tl.static_range(TAPS_W):
                there = inside & (tap_h + SKIP_H * th < KH) & (tap_w + SKIP_W * tw < KW)
                at_tap = taps_at + (SKIP_H * th * KW + SKIP_W * tw) * TAP_STRIDE
                held += (load_tap(at_tap, there),)

    of_taps = ()
    if WANTS_WEIGHT:
        for _tap in tl.static_range(TAPS_H * TAPS_W):
            of_taps += (tl.zeros((RB * JB, BC), tl.float32),)
    of_bias = tl.zeros((RB * JB, BC), tl.float32)
    of_scale = tl.zeros((RB * JB, BC), tl.float32)
    of_scale_rest = tl.zeros((RB * JB, BC), tl.float32)
    of_shift = tl.zeros((RB * JB, BC), tl.float32)
    of_shift_rest = tl.zeros((RB * JB, BC), tl.float32)

    for index in range(chunk * tiles_per_chunk, tl.minimum((chunk + 1) * tiles_per_chunk, tiles)):
        residue = index % residues
        tile = index // residues
        col_block = tile % col_blocks
        tile = tile // col_blocks
        row_block = tile % row_blocks
        image = tile // row_blocks
        if WIDE:
            image = image.to(tl.int64)
        row = row_block * RB + lane // JB
        col = SPACING * Q * (col_block * JB + lane % JB) + residue
        x_row = SH * row + first_h
        x_col = SW * col + first_w
        at_x = ((image * dst_h + x_row) * dst_w + x_col)[:, None] * CHANNELS + channel[None, :]

        z = ()
        if WANTS_WEIGHT:
            for q in tl.static_range(Q):
                mask = ((x_row < dst_h) & (x_col + SW * SPACING * q < dst_w))[:, None]
                loaded = mask
                if not EVEN:
                    loaded = mask & inside[None, :]
                value = tl.load(x + at_x + SW * SPACING * CHANNELS * q, mask=loaded, other=0.0).to(tl.float32)
                value = pending(value, factor, offset, AFFINE, ACTIVATION)
                if AFFINE:
                    value = tl.where(mask, value, 0.0)
                z += (value,)
        acc = ()
        for _q in tl.static_range(Q):
            acc += (tl.zeros((RB * JB, BC), tl.float32),)

        src_col = col + base_w
        for u in tl.static_range(TAPS_H):
            # This row of gradients is met through the taps' row TAPS_H - 1 - u.
            at_row = row + base_h + UNIT_H * u
            row_inside = within(at_row, src_h)
            at_src = ((image * src_h + at_row) * src_w + src_col)[:, None] * CHANNELS + channel[None, :]
            taps = ()
            sums_of_row = ()
            for tw in tl.static_range(TAPS_W):
                if WANTS_X and HOIST:
                    taps += (held[(TAPS_H - 1 - u) * TAPS_W + tw],)
                elif WANTS_X:
                    kh = SKIP_H * (TAPS_H - 1 - u)
                    there = inside & (tap_h + kh < KH) & (tap_w + SKIP_W * tw < KW)
                    taps += (load_tap(taps_at + (kh * KW + SKIP_W * tw) * TAP_STRIDE, there),)
                if WANTS_WEIGHT:
                    sums_of_row += (of_taps[(TAPS_H - 1 - u) * TAPS_W + tw],)
            for i in tl.static_range(Q - 1 + TAPS_W):
                mask = (row_inside & within(src_col + SPACING * i, src_w))[:, None]
                loaded = mask
                if not EVEN:
                    loaded = mask & inside[None, :]
                at = at_src + SPACING * CHANNELS * i
                value = tl.load(grad + at, mask=loaded, other=0.0).to(tl.float32)
                if CORRECTED:
                    raw = tl.load(y + at, mask=loaded, other=0.0).to(tl.float32)
                    value = tl.where(mask, value + slope[None, :] * raw + constant[None, :], 0.0)
                # Position q meets this gradient through the tap q + TAPS_W - 1 - i, if there is one.
                if WANTS_X:
                    updated = ()
                    for q in tl.static_range(Q):
                        if q + TAPS_W - 1 >= i and q <= i:
                            updated += (acc[q] + value * taps[q + TAPS_W - 1 - i],)
                        else:
                            updated += (acc[q],)
                    acc = updated
                if WANTS_WEIGHT:
                    updated_sums = ()
                    for tw in tl.static_range(TAPS_W):
                        if tw + i >= TAPS_W - 1 and tw + i - TAPS_W + 1 < Q:
                            updated_sums += (sums_of_row[tw] + value * z[tw + i - TAPS_W + 1],)
                        else:
                            updated_sums += (sums_of_row[tw],)
                    sums_of_row = updated_sums
                if (HAS_BIAS and TAPS_H - 1 - u == BIAS_TAP // TAPS_W) and (
                    BIAS_TAP % TAPS_W + i >= TAPS_W - 1 and BIAS_TAP % TAPS_W + i - TAPS_W + 1 < Q
                ):
                    of_bias += value
            if WANTS_WEIGHT:
                merged = ()
                for tap in tl.static_range(TAPS_H * TAPS_W):
                    if tap // TAPS_W == TAPS_H - 1 - u:
                        merged += (sums_of_row[tap % TAPS_W],)
                    else:
                        merged += (of_taps[tap],)
                of_taps = merged

        if WANTS_X:
            new_scale = tl.zeros((RB * JB, BC), tl.float32)
            new_shift = tl.zeros((RB * JB, BC), tl.float32)
            for q in tl.static_range(Q):
                mask = ((x_row < dst_h) & (x_col + SW * SPACING * q < dst_w))[:, None]
                loaded = mask
                if not EVEN:
                    loaded = mask & inside[None, :]
                at = at_x + SW * SPACING * CHANNELS * q
                value = acc[q]
                if PENDING:
                    raw = tl.load(x + at, mask=loaded, other=0.0).to(tl.float32)
                    value = through_activation(value, pending(raw, factor, offset, AFFINE, "none"), ACTIVATION)
                if AFFINE:
                    value = tl.where(mask, value, 0.0)
                    new_scale += value * raw
                    new_shift += value
                    value = value * factor[None, :]
                tl.store(grad_x + at, value.to(grad_x.dtype.element_ty), mask=loaded)
            if AFFINE:
                of_scale, of_scale_rest = _compensated(of_scale, of_scale_rest, new_scale)
                of_shift, of_shift_rest = _compensated(of_shift, of_shift_rest, new_shift)

    if WANTS_WEIGHT:
        base = partial + chunk.to(tl.int64) * ((KH * KW + HAS_BIAS) * CHANNELS) + channel
        for tap in tl.static_range(TAPS_H * TAPS_W):
            kh = tap_h + SKIP_H * (tap // TAPS_W)
            kw = tap_w + SKIP_W * (tap % TAPS_W)
            there = inside & (kh < KH) & (kw < KW)
            tl.store(base + (kh * KW + kw) * CHANNELS, tl.sum(of_taps[tap], 0), mask=there)
        if HAS_BIAS:
            tl.store(base + KH * KW * CHANNELS, tl.sum(of_bias, 0), mask=inside & (of_class == BIAS_CLASS))
    if WANTS_X and AFFINE:
        base = sums + (of_class * chunks + chunk).to(tl.int64) * (2 * CHANNELS) + channel
        tl.store(base, tl.sum(of_scale, 0), mask=inside)
        tl.store(base + CHANNELS, tl.sum(of_shift, 0), mask=inside)
