"""Depthwise weight gradient, channels innermost: the sums of one chunk of pixels, kept in registers."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.axis import within

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
    "tiles",
    "tiles_per_chunk",
]


@triton.jit(do_not_specialize=_SIZES)
def weight_sums(
    x,  # (N, src_h, src_w, src_channels), dense
    grad,  # (N, dst_h, dst_w, DST_CHANNELS), dense
    partial,  # (chunks, KH * KW + HAS_BIAS, DST_CHANNELS), float32
    src_h,
    src_w,
    dst_h,
    dst_w,
    low_h,
    low_w,
    channel_blocks,
    col_blocks,
    row_blocks,
    tiles,
    tiles_per_chunk,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    GW: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    SRC_CHANNELS: tl.constexpr,
    DST_CHANNELS: tl.constexpr,
    Q: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    BC: tl.constexpr,
    KC: tl.constexpr,  # taps of one program along each axis
    KR: tl.constexpr,
):
    """A program owns KR x KC taps of BC channels and walks the tiles of its chunk, reading each input once for all."""
    SPACING: tl.constexpr = DW // GW
    STEP: tl.constexpr = SW // GW
    COL_GROUPS: tl.constexpr = (KW + KC - 1) // KC
    TAP_GROUPS: tl.constexpr = COL_GROUPS * ((KH + KR - 1) // KR)
    EVEN: tl.constexpr = DST_CHANNELS % BC == 0  # no channel lies beyond the last

    program = tl.program_id(0)
    block = program % channel_blocks
    program = program // channel_blocks
    tap_group = program % TAP_GROUPS
    chunk = program // TAP_GROUPS
    first_kw = tap_group % COL_GROUPS * KC
    first_kh = tap_group // COL_GROUPS * KR

    lane = tl.arange(0, RB * JB)
    channel = block * BC + tl.arange(0, BC)
    inside = channel < DST_CHANNELS
    src_channel = channel // MULTIPLIER

    acc = ()
    for _tap in tl.static_range(KR * KC):
        acc += (tl.zeros((RB * JB, BC), tl.float32),)
    total = tl.zeros((RB * JB, BC), tl.float32)

    for index in range(chunk * tiles_per_chunk, tl.minimum((chunk + 1) * tiles_per_chunk, tiles)):
        residue = index % SPACING
        tile = index // SPACING
        col_block = tile % col_blocks
        tile = tile // col_blocks
        row_block = tile % row_blocks
        image = tile // row_blocks
        if WIDE:
            image = image.to(tl.int64)
        row = row_block * RB + lane // JB
        group = col_block * JB + lane % JB
        out_col = SPACING * Q * group + residue
        first = grad + (((image * dst_h + row) * dst_w + out_col)[:, None] * DST_CHANNELS + channel[None, :])
        grads = ()
        for q in tl.static_range(Q):
            mask = ((row < dst_h) & (out_col + SPACING * q < dst_w))[:, None]
            if not EVEN:
                mask = mask & inside[None, :]
            value = tl.load(first + SPACING * DST_CHANNELS * q, mask=mask, other=0.0).to(tl.float32)
            grads += (value,)
            if HAS_BIAS:
                total += value
        in_col = SW * residue - low_w + DW * (STEP * Q * group + first_kw)
        for r in tl.static_range(KR):
            at = SH * row - low_h + DH * (first_kh + r)
            row_inside = within(at, src_h)
            first = x + (((image * src_h + at) * src_w + in_col)[:, None] * SRC_CHANNELS + src_channel[None, :])
            sums = ()
            for i in tl.static_range(KC):
                sums += (acc[r * KC + i],)
            for i in tl.static_range(STEP * (Q - 1) + KC):
                mask = (row_inside & within(in_col + DW * i, src_w))[:, None]
                if not EVEN:
                    mask = mask & inside[None, :]
                value = tl.load(first + DW * SRC_CHANNELS * i, mask=mask, other=0.0).to(tl.float32)
                updated = ()
                for tap in tl.static_range(KC):
                    # Output column q reads input column i through the tap i - STEP * q, if there is one.
                    if (i >= tap and i - tap < STEP * Q) and (i - tap) % STEP == 0:
                        updated += (sums[tap] + value * grads[(i - tap) // STEP],)
                    else:
                        updated += (sums[tap],)
                sums = updated
            merged = ()
            for tap in tl.static_range(KR * KC):
                if tap // KC == r:
                    merged += (sums[tap % KC],)
                else:
                    merged += (acc[tap],)
            acc = merged

    base = partial + chunk.to(tl.int64) * (KH * KW + HAS_BIAS) * DST_CHANNELS + channel
    for tap in tl.static_range(KR * KC):
        kh = first_kh + tap // KC
        kw = first_kw + tap % KC
        tl.store(base + (kh * KW + kw) * DST_CHANNELS, tl.sum(acc[tap], 0), mask=inside & (kh < KH) & (kw < KW))
    if HAS_BIAS:
        tl.store(base + KH * KW * DST_CHANNELS, tl.sum(total, 0), mask=inside & (tap_group == 0))
