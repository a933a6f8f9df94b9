"""What the kernels of stages share: tiles of pixels by channels, norm and activation while loading, sums."""

import triton
import triton.language as tl

from dwsep.kernels.triton.jit.activations import activate


@triton.jit
def load_tile(at, pixel, channel, inside_pixel, inside_channel, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """The elements of pixels and channels, (pixels, channels) in float32; 0 beyond the tensor's edges.

    EVEN: whether no channel lies beyond the last.
    """
    mask = inside_pixel[:, None]
    if not EVEN:
        mask = mask & inside_channel[None, :]
    return tl.load(at + (pixel[:, None] * CHANNELS + channel[None, :]), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(at, value, pixel, channel, inside_pixel, inside_channel, CHANNELS: tl.constexpr, EVEN: tl.constexpr):
    """Stores what ``load_tile`` loads, of the tensor's own type."""
    mask = inside_pixel[:, None]
    if not EVEN:
        mask = mask & inside_channel[None, :]
    tl.store(at + (pixel[:, None] * CHANNELS + channel[None, :]), value, mask=mask)


@triton.jit
def load_vector(at, channel, inside, PRESENT: tl.constexpr):
    """A value a channel in float32, or zeros: where there is no such vector, nobody reads them."""
    if PRESENT:
        return tl.load(at + channel, mask=inside, other=0.0).to(tl.float32)
    else:
        return channel.to(tl.float32) * 0.0


@triton.jit
def normed(x, scale, shift, AFFINE: tl.constexpr):
    """``scale * x + shift`` per channel."""
    if AFFINE:
        return x * scale[None, :] + shift[None, :]
    else:
        return x


@triton.jit
def pending(x, scale, shift, AFFINE: tl.constexpr, ACTIVATION: tl.constexpr):
    """``activation(scale * x + shift)``; 0 for channels beyond the last, whose scale, shift and x are loaded as 0."""
    return activate(normed(x, scale, shift, AFFINE), ACTIVATION)


@triton.jit
def load_gradient(
    grad,
    y,
    slope,
    offset,
    pixel,
    channel,
    inside_pixel,
    inside_channel,
    CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    CORRECTED: tl.constexpr,
):
    """The gradient of a raw output, ``grad + slope * y + offset`` with the correction; 0 beyond the last pixel."""
    value = load_tile(grad, pixel, channel, inside_pixel, inside_channel, CHANNELS, EVEN)
    if CORRECTED:
        raw = load_tile(y, pixel, channel, inside_pixel, inside_channel, CHANNELS, EVEN)
        value = tl.where(inside_pixel[:, None], value + slope[None, :] * raw + offset[None, :], 0.0)
    return value


@triton.jit
def operand(x, DTYPE: tl.constexpr, WIDE_DOT: tl.constexpr, PRECISION: tl.constexpr):
    """A tile as a matrix product takes it, rounded to DTYPE; widened again where the GPU has no such products.

    TF32, of float32 alone, is rounded to here: the tensor cores would cut the rest off.
    """
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    elif WIDE_DOT:
        return x.to(DTYPE).to(tl.float32)
    else:
        return x.to(DTYPE)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Float64 values in another type; there is no way from them to the 16-bit ones but through float32."""
    if tl.float64 == DTYPE:
        return x
    else:
        return x.to(tl.float32).to(DTYPE)


@triton.jit
def add_exactly(high, low, value):
    """``high + low`` plus ``value``; ``low`` is what float32 loses in ``high``.

    A sum in a register for every column of a tile is there in many threads, and many GPUs have few float64 units.
    """
    total = high + value
    added = total - high
    return total, low + ((high - (total - added)) + (value - added))


@triton.jit
def add_moments(value, inside, is_first, moments, PIXELS: tl.constexpr):
    """Adds a tile's sums to ``moments``: (pivot, sum and its rest, sum of squares and its rest), all but the first of
    distances from the pivot, the channels' first values.

    Plain squares would lose a variance that is much smaller than the mean's square; integers stay integers.
    """
    pivot = moments[0]
    if is_first:
        row = tl.arange(0, PIXELS)
        pivot = tl.sum(tl.where((row == 0)[:, None], value, 0.0), 0)
    distance = tl.where(inside[:, None], value - pivot[None, :], 0.0)
    total, total_rest = add_exactly(moments[1], moments[2], tl.sum(distance, 0))
    squares, squares_rest = add_exactly(moments[3], moments[4], tl.sum(distance * distance, 0))
    return pivot, total, total_rest, squares, squares_rest


@triton.jit
def store_moments(partial, chunk, channel, inside, count, moments, CHANNELS: tl.constexpr):
    """A chunk's sums of ``count`` values and of their squares, into float64 (chunks, 2, CHANNELS)."""
    pivot = moments[0].to(tl.float64)
    total = moments[1].to(tl.float64) + moments[2].to(tl.float64)
    squares = moments[3].to(tl.float64) + moments[4].to(tl.float64)
    number = count.to(tl.float64)
    at = partial + chunk.to(tl.int64) * (2 * CHANNELS) + channel
    tl.store(at, total + number * pivot, mask=inside)
    tl.store(at + CHANNELS, squares + (2.0 * total + number * pivot) * pivot, mask=inside)


@triton.jit
def add_affine(before, x, sums):
    """Adds what the gradients of scale and shift are: sums of ``before * x`` and of ``before``, and their rests."""
    of_scale, scale_rest = add_exactly(sums[0], sums[1], tl.sum(before * x, 0))
    of_shift, shift_rest = add_exactly(sums[2], sums[3], tl.sum(before, 0))
    return of_scale, scale_rest, of_shift, shift_rest


@triton.jit
def store_affine(partial, chunk, channel, inside, sums, CHANNELS: tl.constexpr):
    """Those sums into float64 (chunks, 2, CHANNELS)."""
    at = partial + chunk.to(tl.int64) * (2 * CHANNELS) + channel
    tl.store(at, sums[0].to(tl.float64) + sums[1].to(tl.float64), mask=inside)
    tl.store(at + CHANNELS, sums[2].to(tl.float64) + sums[3].to(tl.float64), mask=inside)
