"""Block sizes of the depthwise stages by shape class, as in ``configs``: a shape always has the same bits.

A stage is limited by memory where its threads keep to about 25 instructions an element of half precision, or to 50 of
float32. What comes on top of the convolution's own is norm and activation, once for each load: hence two rows a
thread where taps are 3 x 3 and halves, and a pass of its own for activations that cost more than that pass.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from dwsep.kernels.triton import configs
from dwsep.kernels.triton.shapes import Shape

# Programs of the first stage: a few for each multiprocessor's room, so that the last ones leave little of it idle;
# the backward's, whose sums are more, fewer. By the shape alone.
PROGRAMS = 2048
BACKWARD_PROGRAMS = 1024
# Beyond these a window of unrolled taps would leave the registers, or take its compiler minutes.
MOST_COLUMNS = 31
MOST_BACKWARD_TAPS = 25
# Instructions of norm and activation for one element; exponentials as long as their unit takes.
_INSTRUCTIONS = {"none": 2, "relu": 3, "relu6": 4, "hardswish": 7, "silu": 16, "gelu": 25}
# What a pass that stores activated values costs for each, in instructions that could be done meanwhile.
_PASS = 50


@dataclass(frozen=True)
class StageBlocks:
    """What one program computes of a stage.

    Attributes:
        rows: Rows of outputs that a thread holds in registers.
        columns: Columns of them.
        row_lanes: Such groups of rows of a tile.
        col_lanes: Such groups of columns, side by side.
        channels: Channels of a tile.
        warps: Warps of a program.
        hoist: Whether the taps stay in registers, all rows of them unrolled.
    """

    rows: int
    columns: int
    row_lanes: int
    col_lanes: int
    channels: int
    warps: int
    hoist: bool


def _channels(channels: int) -> int:
    """Channels of a tile: 64, which are 128 bytes of bfloat16; fewer where more than a tenth would be wasted."""
    return configs._channel_block(channels, 64)


def _lanes(channels: int) -> int:
    """Groups of outputs of a tile, with two channels a thread of four warps."""
    return 4 * 32 * 2 // channels


def tile(groups: int, rows: int, lanes: int) -> tuple[int, int]:
    """As ``configs._tile``, with no more than ``lanes`` where an image has fewer."""
    high, wide = configs._tile(groups, rows, lanes)
    while high * wide > lanes:
        if high > configs.power_of_two(rows):
            high //= 2
        else:
            wide //= 2
    return high, wide


@functools.lru_cache(maxsize=1024)
def forward(shape: Shape, element_size: int) -> StageBlocks:
    """Blocks of the forward pass."""
    rows, cols = shape.rows, shape.cols
    hoist = shape.taps <= 9
    # Taps in registers leave room for fewer columns.
    most = 5 if hoist else 8
    columns = configs._columns(configs.length(cols, False), min(cols.kernel, 8), configs._step(cols, False), most)
    shares_rows = rows.kernel > 1 and rows.dilation == 1 and rows.stride == 1 and rows.output > 1
    high = 2 if hoist and shares_rows and element_size == 2 else 1  # float32's memory leaves time for more loads
    block, warps = _channels(shape.channels), 4
    groups = -(-configs.length(cols, False) // columns)
    row_lanes, col_lanes = tile(groups, -(-rows.output // high), _lanes(block))
    return StageBlocks(high, columns, row_lanes, col_lanes, block, warps, hoist)


@functools.lru_cache(maxsize=1024)
def backward(shape: Shape, element_size: int) -> StageBlocks:
    """Blocks of the backward pass."""
    cols = shape.cols
    outputs, taps = configs.length(cols, True), configs._taps(cols, True)
    # Registers hold the sums of all taps: beyond nine of them a thread takes fewer columns or, of float32, whose loads
    # are wide enough, one channel.
    columns = configs._columns(outputs, taps, most=4 if shape.taps <= 9 or element_size == 4 else 3)
    block, warps = _channels(shape.channels), 8 if shape.taps > 9 and element_size == 4 else 4
    groups = -(-outputs // columns)
    row_lanes, col_lanes = tile(groups, configs.class_rows(shape, True), _lanes(block))
    return StageBlocks(1, columns, row_lanes, col_lanes, block, warps, shape.taps <= 9)


def loads_per_output(shape: Shape, blocks: StageBlocks) -> float:
    """How often an input is loaded, and goes through norm and activation, for each output."""
    rows = configs._step(shape.rows, False) * (blocks.rows - 1) + shape.rows.kernel
    cols = configs._step(shape.cols, False) * (blocks.columns - 1) + shape.cols.kernel
    return rows * cols / (blocks.rows * blocks.columns)


@functools.lru_cache(maxsize=1024)
def activates_while_loading(shape: Shape, element_size: int, activation: str) -> bool:
    """Whether norm and activation cost less with every load than in a pass of their own before."""
    outputs = shape.rows.output * shape.cols.output
    inputs = shape.rows.size * shape.cols.size
    loads = loads_per_output(shape, forward(shape, element_size))
    return loads * _INSTRUCTIONS[activation] * outputs <= _PASS * (element_size / 2) * inputs
