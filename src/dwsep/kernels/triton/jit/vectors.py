"""Tiles of neighbouring columns, taken apart into one tensor a column and put together again, within each thread."""

import triton
import triton.language as tl


@triton.jit
def _halves(x, B: tl.constexpr, N: tl.constexpr):
    """(B, N) as its even and its odd columns, (B, N / 2) or for N = 2 (B,)."""
    if N == 2:
        return tl.split(x)
    else:
        return tl.split(tl.reshape(x, (B, N // 2, 2)))


@triton.jit
def columns_of(x, B: tl.constexpr, Q: tl.constexpr):
    """The columns of a (B, Q) tile, Q of 4 or 8, as a tuple of (B,) tensors."""
    tl.static_assert(Q == 4 or Q == 8)
    even, odd = _halves(x, B, Q)
    if Q == 8:
        c04, c26 = _halves(even, B, 4)
        c15, c37 = _halves(odd, B, 4)
        c0, c4 = _halves(c04, B, 2)
        c2, c6 = _halves(c26, B, 2)
        c1, c5 = _halves(c15, B, 2)
        c3, c7 = _halves(c37, B, 2)
        return (c0, c1, c2, c3, c4, c5, c6, c7)
    else:
        c0, c2 = _halves(even, B, 2)
        c1, c3 = _halves(odd, B, 2)
        return (c0, c1, c2, c3)


@triton.jit
def _joined(even, odd, B: tl.constexpr, N: tl.constexpr):
    return tl.reshape(tl.join(even, odd), (B, N))


@triton.jit
def tile_of(columns, B: tl.constexpr, Q: tl.constexpr):
    """The inverse of :func:`columns_of`."""
    if Q == 8:
        even = _joined(_joined(columns[0], columns[4], B, 2), _joined(columns[2], columns[6], B, 2), B, 4)
        odd = _joined(_joined(columns[1], columns[5], B, 2), _joined(columns[3], columns[7], B, 2), B, 4)
    else:
        even = _joined(columns[0], columns[2], B, 2)
        odd = _joined(columns[1], columns[3], B, 2)
    return _joined(even, odd, B, Q)
