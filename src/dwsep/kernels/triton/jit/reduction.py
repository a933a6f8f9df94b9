"""The second stage of the weight gradient: the chunks' sums added in one order, whatever ran when."""

import triton
import triton.language as tl

# One compiled kernel for all sizes: what matters of them to the compiler are constants.
_SIZES = [
    "chunks",
    "channels",
]


@triton.jit(do_not_specialize=_SIZES)
def add_chunks(
    partial,  # (chunks, TAPS + HAS_BIAS, channels), float32
    grad_weight,  # (channels, TAPS)
    grad_bias,  # (channels,)
    chunks,
    channels,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program adds BLOCK sums, CHUNKS of each at a time."""
    rows: tl.constexpr = TAPS + HAS_BIAS
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < rows * channels
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        offset = chunk.to(tl.int64)[:, None] * (rows * channels) + element[None, :]
        mask = (chunk < chunks)[:, None] & inside[None, :]
        total += tl.sum(tl.load(partial + offset, mask=mask, other=0.0), 0)
    tap = element // channels
    channel = element % channels
    is_weight = inside & (tap < TAPS)
    tl.store(grad_weight + channel * TAPS + tap, total.to(grad_weight.dtype.element_ty), mask=is_weight)
    if HAS_BIAS:
        tl.store(grad_bias + channel, total.to(grad_bias.dtype.element_ty), mask=inside & (tap == TAPS))
