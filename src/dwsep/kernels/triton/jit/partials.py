"""The second stage of the stages' sums: what the chunks found, added in one order, whatever ran when."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.pending import rounded


@triton.jit(do_not_specialize=["chunks", "elements", "first_elements"])
def add_partials(
    partial,  # (chunks, elements), float32 or float64
    first,  # the first ``first_elements`` sums
    second,  # the others
    chunks,
    elements,
    first_elements,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program adds BLOCK sums in float64, CHUNKS of each at a time."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        offset = chunk.to(tl.int64)[:, None] * elements + element[None, :]
        mask = (chunk < chunks)[:, None] & inside[None, :]
        total += tl.sum(tl.load(partial + offset, mask=mask, other=0.0).to(tl.float64), 0)
    rest = inside & (element >= first_elements)
    tl.store(first + element, rounded(total, first.dtype.element_ty), mask=element < first_elements)
    tl.store(second + (element - first_elements), rounded(total, second.dtype.element_ty), mask=rest)
