"""Depthwise weight gradient, contiguous tensors: the sums of one chunk of a channel's planes, kept in registers."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.axis import within
from dwsep.kernels.triton.jit.vectors import columns_of

# One compiled kernel for all sizes: what matters of them to the compiler are constants.
_SIZES = [
    "batch",
    "src_channels",
    "dst_channels",
    "src_h",
    "src_w",
    "dst_h",
    "dst_w",
    "low_h",
    "low_w",
    "col_blocks",
    "row_blocks",
    "tiles",
    "tiles_per_chunk",
]


@triton.jit(do_not_specialize=_SIZES)
def weight_sums_planes(
    x,  # (N * src_channels, src_h, src_w), dense
    grad,  # (N * dst_channels, dst_h, dst_w), dense
    partial,  # (chunks, KH * KW + HAS_BIAS, dst_channels), float32
    batch,
    src_channels,
    dst_channels,
    src_h,
    src_w,
    dst_h,
    dst_w,
    low_h,
    low_w,
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
    SHIFT: tl.constexpr,  # as in planes.correlate_planes, for the first tap of column 0
    Q: tl.constexpr,
    PB: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    KC: tl.constexpr,
    KR: tl.constexpr,
):
    """A program owns KR x KC taps of one channel and walks the tiles of its chunk, reading each input once for all."""
    SPACING: tl.constexpr = DW // GW
    STEP: tl.constexpr = SW // GW
    COL_GROUPS: tl.constexpr = (KW + KC - 1) // KC
    TAP_GROUPS: tl.constexpr = COL_GROUPS * ((KH + KR - 1) // KR)
    LANES: tl.constexpr = PB * RB * JB
    WINDOW: tl.constexpr = STEP * (Q - 1) + KC

    program = tl.program_id(0)
    tap_group = program % TAP_GROUPS
    program = program // TAP_GROUPS
    channel = program % dst_channels
    chunk = program // dst_channels
    first_kw = tap_group % COL_GROUPS * KC
    first_kh = tap_group // COL_GROUPS * KR
    lane = tl.arange(0, LANES)

    acc = ()
    for _tap in tl.static_range(KR * KC):
        acc += (tl.zeros((LANES,), tl.float32),)
    total = tl.zeros((LANES,), tl.float32)

    for index in range(chunk * tiles_per_chunk, tl.minimum((chunk + 1) * tiles_per_chunk, tiles)):
        col_block = index % col_blocks
        tile = index // col_blocks
        row_block = tile % row_blocks
        image = tile // row_blocks * PB + lane // (RB * JB)
        row = row_block * RB + lane // JB % RB
        part = col_block * JB + lane % JB
        residue = part % SPACING
        group = part // SPACING
        inside = image < batch
        if WIDE:
            image = image.to(tl.int64)
        plane = image * dst_channels + channel
        src_plane = image * src_channels + channel // MULTIPLIER
        grads = ()
        if SHIFT >= 0:
            mask = inside & (row < dst_h) & (group < dst_w // Q)
            offset = (plane * dst_h + row) * (dst_w // Q) + group
            offset = offset[:, None] * Q + tl.arange(0, Q)[None, :]
            loaded = tl.load(grad + offset, mask=mask[:, None], other=0.0)
            grads += columns_of(loaded.to(tl.float32), LANES, Q)
        else:
            for q in tl.static_range(Q):
                col = SPACING * (Q * group + q) + residue
                mask = inside & (row < dst_h) & (col < dst_w)
                offset = (plane * dst_h + row) * dst_w + col
                grads += (tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32),)
        if HAS_BIAS:
            for q in tl.static_range(Q):
                total += grads[q]
        in_col = SW * residue - low_w + DW * (STEP * Q * group + first_kw)
        in_vector = group + (first_kw - low_w - SHIFT) // Q
        for r in tl.static_range(KR):
            at = SH * row - low_h + DH * (first_kh + r)
            row_inside = inside & within(at, src_h)
            values = ()
            if SHIFT >= 0:
                offset = (src_plane * src_h + at) * (src_w // Q) + in_vector
                first = x + (offset[:, None] * Q + tl.arange(0, Q)[None, :])
                for v in tl.static_range((SHIFT + WINDOW + Q - 1) // Q):
                    mask = (row_inside & within(in_vector + v, src_w // Q))[:, None]
                    loaded = tl.load(first + Q * v, mask=mask, other=0.0)
                    values += columns_of(loaded.to(tl.float32), LANES, Q)
            else:
                first = x + ((src_plane * src_h + at) * src_w + in_col)
                for i in tl.static_range(WINDOW):
                    mask = row_inside & within(in_col + DW * i, src_w)
                    values += (tl.load(first + DW * i, mask=mask, other=0.0).to(tl.float32),)
            merged = ()
            for tap in tl.static_range(KR * KC):
                found = acc[tap]
                if tap // KC == r:
                    for q in tl.static_range(Q):
                        found += values[(SHIFT if SHIFT >= 0 else 0) + STEP * q + tap % KC] * grads[q]
                merged += (found,)
            acc = merged

    base = partial + chunk.to(tl.int64) * (KH * KW + HAS_BIAS) * dst_channels + channel
    for tap in tl.static_range(KR * KC):
        kh = first_kh + tap // KC
        kw = first_kw + tap % KC
        tl.store(base + (kh * KW + kw) * dst_channels, tl.sum(acc[tap], 0), mask=(kh < KH) & (kw < KW))
    if HAS_BIAS:
        tl.store(base + KH * KW * dst_channels, tl.sum(total, 0), mask=tap_group == 0)
