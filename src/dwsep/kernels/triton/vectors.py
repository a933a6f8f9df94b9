"""Tiles of neighbouring columns, taken apart into one tensor a column and put together again, within each thread."""

import triton
import triton.language as tl


@triton.jit
def _halves(x):
    """(B, n) as its even and its odd columns."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def columns_of(x):
    """The columns of a (B, Q) tile, Q of 1, 2, 4 or 8, as a tuple of (B,) tensors."""
    rows: tl.constexpr = x.shape[0]
    if x.shape[1] == 1:
        result = (tl.reshape(x, (rows,)),)
    else:
        even, odd = _halves(x)
        low = columns_of(even)
        high = columns_of(odd)
        result = ()
        for i in tl.static_range(x.shape[1] // 2):
            result += (low[i], high[i])
    return result


@triton.jit
def tile_of(columns, Q: tl.constexpr, FIRST: tl.constexpr = 0, STEP: tl.constexpr = 1):
    """The inverse of :func:`columns_of`, of the Q columns at FIRST and every STEP further."""
    if Q == 1:
        return columns[FIRST][:, None]
    even = tile_of(columns, Q // 2, FIRST, STEP * 2)
    odd = tile_of(columns, Q // 2, FIRST + STEP, STEP * 2)
    return tl.reshape(tl.join(even, odd), (even.shape[0], Q))
