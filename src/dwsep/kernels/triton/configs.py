"""Block sizes by shape class. Nothing is measured at run time: a shape always has the same blocks and the same bits."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from dwsep.kernels.triton.shapes import Axis, Shape


@dataclass(frozen=True)
class Blocks:
    """What one program computes.

    Attributes:
        columns: Output columns that a thread holds in registers.
        rows: Rows of a tile.
        groups: Groups of columns of a tile, side by side.
        channels: Channels of a tile, where they are innermost; else planes.
        taps: Taps along the columns that are unrolled.
        warps: Warps of a program.
        tap_rows: For the weight gradient, rows of taps that a program sums.
        vectors: For contiguous tensors, whether a row is whole vectors of ``columns``, which are loaded at once.
        unroll: Rows of taps whose loads the compiler may overlap.
    """

    columns: int
    rows: int
    groups: int
    channels: int
    taps: int
    warps: int
    tap_rows: int = 1
    vectors: bool = False
    unroll: int = 1


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def even_part(n: int, most: int) -> int:
    """``n`` split into as few parts of at most ``most`` as can be, the parts alike: the largest of them."""
    return -(-n // -(-n // most))


def length(axis: Axis, transposed: bool) -> int:
    """Outputs of one class and residue along an axis."""
    outputs = -(-axis.size // axis.stride) if transposed else axis.output
    return -(-outputs // axis.spacing)


def class_rows(shape: Shape, transposed: bool) -> int:
    """Rows of the output, or of one class of the input's gradient."""
    return -(-shape.rows.size // shape.rows.stride) if transposed else shape.rows.output


def parts(axis: Axis, transposed: bool, columns: int) -> int:
    """Threads that a row of contiguous outputs takes: its groups of columns, in each residue and class."""
    return -(-length(axis, transposed) // columns) * axis.spacing * (axis.stride if transposed else 1)


def _taps(axis: Axis, transposed: bool) -> int:
    """Taps that one output sees along an axis."""
    return -(-axis.kernel // (axis.stride // axis.divisor)) if transposed else axis.kernel


def _columns(outputs: int, taps: int, step: int = 1, most: int = 8) -> int:
    """Columns for a thread, 2 to ``most``: each load serves more of them, but few shall lie beyond the edge."""

    def cost(columns: int) -> int:
        # Instructions: a multiply-add a tap, about four a load, ten for a group.
        loads = step * (columns - 1) + taps
        return -(-outputs // columns) * (columns * taps + 4 * loads + 10)

    return min(range(min(2, outputs), min(most, outputs) + 1), key=cost)


def _fit(count: int, most: int) -> int:
    """A power of two up to ``most`` of which few lie beyond ``count``: larger ones only where they waste little."""
    best = 1
    block = 2
    while block <= most:
        if -(-count // block) * block <= count * 1.15 + 1:
            best = block
        block *= 2
    return best


def _tile(groups: int, rows: int, pixels: int) -> tuple[int, int]:
    """Rows and groups of columns of a tile of ``pixels``: several rows, which share most of what they read."""
    side = _fit(groups, pixels if rows == 1 else max(1, pixels // 4))
    height = _fit(rows, pixels // side)
    return pixels // side if rows * side < pixels else height, pixels // height if height * side < pixels else side


def _channel_block(channels: int, most: int) -> int:
    """Channels of a tile: as many as ``most``, unless a tenth of them would lie beyond the last."""
    block = min(most, max(16, power_of_two(channels)))
    while block > 32 and -(-channels // block) * block > channels * 1.1:
        block //= 2
    return block


def _step(axis: Axis, transposed: bool) -> int:
    return 1 if transposed else axis.stride // axis.divisor


# The figures below are the best of several hundred combinations measured on an H200 in bfloat16.
@functools.lru_cache(maxsize=1024)
def channels_last(shape: Shape, transposed: bool, element_size: int) -> Blocks:
    """Blocks of the forward pass and of the input gradient, channels innermost."""
    channels = shape.channels if transposed else shape.out_channels
    outputs, taps = length(shape.cols, transposed), _taps(shape.cols, transposed)
    columns = _columns(outputs, min(taps, 8), _step(shape.cols, transposed))
    short, warps = taps <= 3, 4
    block, per_thread = (64, 2) if short and channels > 32 else (_channel_block(channels, 64), 4)
    rows, groups = _tile(-(-outputs // columns), class_rows(shape, transposed), warps * 32 * per_thread // block)
    unroll = shape.rows.kernel if shape.rows.kernel <= 5 else 1
    return Blocks(columns, rows, groups, block, even_part(taps, 8), warps, unroll=unroll)


@functools.lru_cache(maxsize=1024)
def channels_last_weight(shape: Shape, element_size: int) -> Blocks:
    """Blocks of the weight gradient, channels innermost."""
    outputs, taps = length(shape.cols, False), even_part(shape.cols.kernel, 16)
    columns = _columns(outputs, taps, _step(shape.cols, False))
    warps = 2
    # Registers hold the sums of all taps: fewer channels a thread where there are more of them, or they are wider.
    most, per_thread = (64, 4 if element_size == 2 else 2) if shape.taps <= 9 else (32, 2)
    block = min(most, max(16, power_of_two(shape.out_channels)))
    rows, groups = _tile(-(-outputs // columns), shape.rows.output, warps * 32 * per_thread // block)
    return Blocks(columns, rows, groups, block, taps, warps, even_part(shape.rows.kernel, max(1, 49 // taps)))


def _vector(axis: Axis, element_size: int) -> int:
    """Columns of a vector where whole rows are such vectors, or 0."""
    if axis.stride > 1 or axis.dilation > 1:
        return 0
    sizes = (4, 8) if element_size == 4 else (8, 4)
    return next((q for q in sizes if axis.size % q == 0 and axis.output % q == 0), 0)


def _planes_tile(shape: Shape, transposed: bool, columns: int, lanes: int, planes: int) -> tuple[int, int, int]:
    """Planes, rows and groups of a tile."""
    rows = shape.rows.size if transposed else shape.rows.output
    groups = _fit(parts(shape.cols, transposed, columns), lanes)
    height = _fit(rows, lanes // groups)
    count = min(lanes // groups // height, power_of_two(planes))
    return count, lanes // groups // count, groups


def _scalar_columns(axis: Axis, transposed: bool, taps: int) -> int:
    """Columns where each is loaded by itself: neighbouring threads' loads lie that many elements apart."""
    columns = _columns(length(axis, transposed), min(taps, 8), _step(axis, transposed))
    spread = taps <= 3 and (axis.stride > 1 or axis.spacing > 1)
    return min(columns, 4) if spread else columns


@functools.lru_cache(maxsize=1024)
def planes(shape: Shape, transposed: bool, element_size: int) -> Blocks:
    """Blocks of the forward pass and of the input gradient, contiguous tensors."""
    taps, vector = _taps(shape.cols, transposed), _vector(shape.cols, element_size)
    columns = vector or _scalar_columns(shape.cols, transposed, taps)
    chunk = even_part(taps, 8)
    if vector and chunk < taps:
        chunk = 8
    warps = 2 if class_rows(shape, transposed) > 1 else 4
    channels = shape.channels if transposed else shape.out_channels
    count, rows, groups = _planes_tile(shape, transposed, columns, warps * 32, shape.batch * channels)
    unroll = shape.rows.kernel if shape.rows.kernel <= 7 else 1
    return Blocks(columns, rows, groups, count, chunk, warps, vectors=bool(vector), unroll=unroll)


@functools.lru_cache(maxsize=1024)
def planes_weight(shape: Shape, element_size: int) -> Blocks:
    """Blocks of the weight gradient, contiguous tensors."""
    taps, vector = shape.cols.kernel, _vector(shape.cols, element_size)
    columns = vector or _scalar_columns(shape.cols, False, taps)
    chunk = even_part(taps, 16)
    if vector and chunk < taps:
        chunk = 16
    warps = 4
    count, rows, groups = _planes_tile(shape, False, columns, warps * 32, shape.batch)
    tap_rows = even_part(shape.rows.kernel, max(1, 56 // chunk))
    return Blocks(columns, rows, groups, count, chunk, warps, tap_rows, bool(vector))
