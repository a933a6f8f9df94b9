"""The second stages of a depthwise stage's sums: the chunks' added in one order, whatever ran when."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["chunks", "channels"])
def add_statistics(
    partial,  # (3, chunks, channels), float32: centre, sum and squares around it; then (chunks,) counts
    sums,  # (2, channels), float64
    chunks,
    channels,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums of BLOCK channels and of their squares, which go on in float64 and back to zero as their centre."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    plane = chunks.to(tl.int64) * channels
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        at = partial + (chunk.to(tl.int64)[:, None] * channels + channel[None, :])
        count = tl.load(partial + 3 * plane + chunk, mask=chunk < chunks, other=0.0).to(tl.float64)[:, None]
        centre = tl.load(at, mask=mask, other=0.0).to(tl.float64)
        apart = tl.load(at + plane, mask=mask, other=0.0).to(tl.float64)
        around = tl.load(at + 2 * plane, mask=mask, other=0.0).to(tl.float64)
        moved = count * centre
        total += tl.sum(moved + apart, 0)
        squares += tl.sum(around + centre * (2.0 * apart + moved), 0)
    tl.store(sums + channel, total, mask=inside)
    tl.store(sums + channels + channel, squares, mask=inside)


@triton.jit(do_not_specialize=["chunks", "rows", "channels", "weight_programs"])
def add_gradients(
    partial,  # (chunks, TAPS + HAS_BIAS, channels), float32
    partial_sums,  # (rows, 2, channels), float32
    grad_weight,  # (channels, TAPS)
    grad_bias,  # (channels,)
    grad_affine,  # (2, channels), float64
    chunks,
    rows,
    channels,
    weight_programs,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program adds BLOCK sums, CHUNKS of each at a time: the weight's in float32, those of the norm in float64."""
    program = tl.program_id(0)
    if program < weight_programs:
        count: tl.constexpr = TAPS + HAS_BIAS
        element = program * BLOCK + tl.arange(0, BLOCK)
        inside = element < count * channels
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, chunks, CHUNKS):
            chunk = first + tl.arange(0, CHUNKS)
            at = chunk.to(tl.int64)[:, None] * (count * channels) + element[None, :]
            mask = (chunk < chunks)[:, None] & inside[None, :]
            total += tl.sum(tl.load(partial + at, mask=mask, other=0.0), 0)
        tap = element // channels
        channel = element % channels
        is_weight = inside & (tap < TAPS)
        tl.store(grad_weight + channel * TAPS + tap, total.to(grad_weight.dtype.element_ty), mask=is_weight)
        if HAS_BIAS:
            tl.store(grad_bias + channel, total.to(grad_bias.dtype.element_ty), mask=inside & (tap == TAPS))
    else:
        element = (program - weight_programs) * BLOCK + tl.arange(0, BLOCK)
        inside = element < 2 * channels
        wide = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, rows, CHUNKS):
            row = first + tl.arange(0, CHUNKS)
            at = row.to(tl.int64)[:, None] * (2 * channels) + element[None, :]
            mask = (row < rows)[:, None] & inside[None, :]
            wide += tl.sum(tl.load(partial_sums + at, mask=mask, other=0.0).to(tl.float64), 0)
        tl.store(grad_affine + element, wide, mask=inside)
