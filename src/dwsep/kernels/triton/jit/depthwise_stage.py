"""Forward pass of a depthwise stage, channels innermost: norm and activation while loading, sums while storing.

A thread holds R x Q outputs of a few channels, R = 2 at most with up to nine taps: one input serves as many of them as
it reaches, and goes through norm and activation once for all. More rows of taps are a loop: the time that
Triton's compiler takes grows with the cube of a kernel's length.
"""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.axis import within
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
def positions(first, SPACING: tl.constexpr, COUNT: tl.constexpr, size):
    """How many of ``first``, ``first + SPACING``, ... ``COUNT`` of them, are below ``size``."""
    return tl.minimum(tl.maximum((size - first + SPACING - 1) // SPACING, 0), COUNT)


@triton.jit
def load_tap(at, mask):
    """One tap of each channel, (1, channels)."""
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _add_row(
    acc,
    taps,
    first,
    in_col,
    row_inside,
    inside,
    factor,
    offset,
    src_w,
    U: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    DW: tl.constexpr,
    CHANNELS: tl.constexpr,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    R: tl.constexpr,
    Q: tl.constexpr,
):
    """``acc`` with what the input row U of a window adds; ``taps`` are KW for each of the R rows of outputs."""
    for i in tl.static_range(STEP_W * (Q - 1) + KW):
        mask = (row_inside & within(in_col + DW * i, src_w))[:, None]
        loaded = mask
        if not EVEN:
            loaded = mask & inside[None, :]
        value = tl.load(first + DW * CHANNELS * i, mask=loaded, other=0.0).to(tl.float32)
        value = pending(value, factor, offset, AFFINE, ACTIVATION)
        if AFFINE:
            value = tl.where(mask, value, 0.0)
        updated = ()
        for r in tl.static_range(R):
            for q in tl.static_range(Q):
                if (STEP_H * r <= U and U - STEP_H * r < KH) and (i >= STEP_W * q and i - STEP_W * q < KW):
                    updated += (acc[r * Q + q] + value * taps[r * KW + i - STEP_W * q],)
                else:
                    updated += (acc[r * Q + q],)
        acc = updated
    return acc


@triton.jit(do_not_specialize=_SIZES)
def depthwise_stage(
    x,  # (N, src_h, src_w, CHANNELS), dense
    weight,  # taps by channels, at TAP_STRIDE and CHANNEL_STRIDE
    bias,  # (CHANNELS,)
    scale,  # (CHANNELS,), float32
    shift,
    dst,  # (N, dst_h, dst_w, CHANNELS), dense
    partial,  # (3, chunks, CHANNELS), float32: centre, sum and squares around it; then (chunks,) counts
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
    HAS_BIAS: tl.constexpr,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAP_STRIDE: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    R: tl.constexpr,  # above 1 only where DH divides SH
    Q: tl.constexpr,
    RB: tl.constexpr,
    JB: tl.constexpr,
    BC: tl.constexpr,
    HOIST: tl.constexpr,  # whether all taps stay in registers; else R is 1 and rows of taps are a loop
):
    """A program computes the tiles of its chunk, and the sums of what it stored."""
    SPACING: tl.constexpr = DW // GW
    STEP_H: tl.constexpr = SH // GH
    STEP_W: tl.constexpr = SW // GW
    EVEN: tl.constexpr = CHANNELS % BC == 0  # no channel lies beyond the last

    program = tl.program_id(0)
    block = program % channel_blocks
    chunk = program // channel_blocks
    lane = tl.arange(0, RB * JB)
    channel = block * BC + tl.arange(0, BC)
    inside = channel < CHANNELS
    taps_at = weight + channel * CHANNEL_STRIDE

    factor = tl.zeros((BC,), tl.float32)
    offset = tl.zeros((BC,), tl.float32)
    if AFFINE:
        factor = tl.load(scale + channel, mask=inside, other=0.0)
        offset = tl.load(shift + channel, mask=inside, other=0.0)
    added = tl.zeros((BC,), tl.float32)
    if HAS_BIAS:
        added = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    held = ()
    if HOIST:
        for tap in tl.static_range(KH * KW):
            held += (load_tap(taps_at + tap * TAP_STRIDE, inside),)

    row_step = src_w
    if WIDE:
        row_step = src_w.to(tl.int64)
    row_step = row_step * (DH * CHANNELS)

    centre = tl.zeros((BC,), tl.float32)
    centred = False
    count = 0
    total = tl.zeros((RB * JB, BC), tl.float32)
    squares = tl.zeros((RB * JB, BC), tl.float32)

    for index in range(chunk * tiles_per_chunk, tl.minimum((chunk + 1) * tiles_per_chunk, tiles)):
        residue = index % residues
        tile = index // residues
        col_block = tile % col_blocks
        tile = tile // col_blocks
        row_block = tile % row_blocks
        image = tile // row_blocks
        if WIDE:
            image = image.to(tl.int64)
        row = (row_block * RB + lane // JB) * R
        col = SPACING * Q * (col_block * JB + lane % JB) + residue
        in_row = SH * row - low_h
        in_col = SW * col - low_w

        acc = ()
        for _out in tl.static_range(R * Q):
            acc += (tl.zeros((RB * JB, BC), tl.float32) + added[None, :],)
        first = x + (((image * src_h + in_row) * src_w + in_col)[:, None] * CHANNELS + channel[None, :])
        if HOIST:
            for u in tl.static_range(STEP_H * (R - 1) + KH):
                taps = ()  # of the rows which reach this one, for each output row
                for r in tl.static_range(R):
                    for kw in tl.static_range(KW):
                        if u >= STEP_H * r and u - STEP_H * r < KH:
                            taps += (held[(u - STEP_H * r) * KW + kw],)
                        else:
                            taps += (held[0],)  # not used
                row_inside = within(in_row + DH * u, src_h)
                acc = _add_row(
                    acc, taps, first + row_step * u, in_col, row_inside, inside, factor, offset, src_w,
                    u, KH, KW, STEP_H, STEP_W, DW, CHANNELS, AFFINE, ACTIVATION, EVEN, R, Q,
                )  # fmt: skip
        else:
            for u in range(KH):
                taps = ()
                for kw in tl.static_range(KW):
                    taps += (load_tap(taps_at + (u * KW + kw) * TAP_STRIDE, inside),)
                row_inside = within(in_row + DH * u, src_h)
                acc = _add_row(
                    acc, taps, first + row_step * u, in_col, row_inside, inside, factor, offset, src_w,
                    0, KH, KW, STEP_H, STEP_W, DW, CHANNELS, AFFINE, ACTIVATION, EVEN, R, Q,
                )  # fmt: skip

        # What is stored is what is summed, around one of the values: where the mean is large, plain squares would lose
        # the variance.
        rows_there = positions(row_block * (RB * R), 1, RB * R, dst_h)
        valid = rows_there * positions(col_block * (JB * SPACING * Q) + residue, SPACING, JB * Q, dst_w)
        count += valid
        first = dst + (((image * dst_h + row) * dst_w + col)[:, None] * CHANNELS + channel[None, :])
        stored = ()
        for r in tl.static_range(R):
            for q in tl.static_range(Q):
                mask = ((row + r < dst_h) & (col + SPACING * q < dst_w))[:, None]
                loaded = mask
                if not EVEN:
                    loaded = mask & inside[None, :]
                rounded = acc[r * Q + q].to(dst.dtype.element_ty)
                tl.store(first + (r * dst_w + SPACING * q) * CHANNELS, rounded, mask=loaded)
                stored += (rounded.to(tl.float32),)
        if not centred:
            # The tile's first output, if it has any.
            centred = valid > 0
            if centred:
                centre = tl.sum(tl.where((lane == 0)[:, None], stored[0], 0.0), 0)
        new = tl.zeros((RB * JB, BC), tl.float32)
        new_squares = tl.zeros((RB * JB, BC), tl.float32)
        for r in tl.static_range(R):
            for q in tl.static_range(Q):
                mask = ((row + r < dst_h) & (col + SPACING * q < dst_w))[:, None]
                apart = tl.where(mask, stored[r * Q + q] - centre[None, :], 0.0)
                new += apart
                new_squares += apart * apart
        total += new
        squares += new_squares

    base = partial + chunk.to(tl.int64) * CHANNELS + channel
    plane = chunks.to(tl.int64) * CHANNELS
    tl.store(base, centre, mask=inside)
    tl.store(base + plane, tl.sum(total, 0), mask=inside)
    tl.store(base + 2 * plane, tl.sum(squares, 0), mask=inside)
    tl.store(partial + 3 * plane + chunk, count.to(tl.float32), mask=block == 0)
