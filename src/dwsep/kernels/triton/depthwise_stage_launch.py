"""Launches of the depthwise stages: grids and arguments from shapes and blocks, worked out once for each problem."""

from __future__ import annotations

import functools
from typing import Any

from dwsep.kernels.triton import configs
from dwsep.kernels.triton import depthwise_stage_configs as tables
from dwsep.kernels.triton.depthwise_stage_configs import StageBlocks
from dwsep.kernels.triton.jit import depthwise_stage, depthwise_stage_backward, depthwise_stage_sums
from dwsep.kernels.triton.launch import _CACHED, Call, _ceil, _geometry, _sizes
from dwsep.kernels.triton.shapes import Axis, Shape

# Chunks that a program of the second stage loads at once, and sums that it makes: enough of both to hide the memory's
# distance, whole sectors of memory, and programs for many multiprocessors.
_CHUNKS = 256
_BLOCK = 8


def reads_weight_itself(shape: Shape) -> bool:
    """Whether the kernels take the weight as it is, (channels, taps), rather than tap by tap."""
    return shape.taps <= 9


def _tiles(shape: Shape, blocks: StageBlocks, transposed: bool) -> dict[str, int]:
    """The tiles of one class, and the loops they are taken apart into."""
    cols = shape.cols
    height = configs.class_rows(shape, transposed)
    width = -(-cols.size // cols.stride) if transposed else cols.output
    residues = min(cols.spacing, width)
    row_blocks = _ceil(height, blocks.rows * blocks.row_lanes)
    col_blocks = _ceil(_ceil(width, cols.spacing), blocks.columns * blocks.col_lanes)
    return {
        "residues": residues,
        "col_blocks": col_blocks,
        "row_blocks": row_blocks,
        "tiles": shape.batch * row_blocks * col_blocks * residues,
    }


def _blocks(shape: Shape, blocks: StageBlocks) -> dict[str, Any]:
    direct = reads_weight_itself(shape)
    return {
        **{key: value for key, value in _geometry(shape).items() if key != "MULTIPLIER"},
        "GH": shape.rows.divisor,
        "CHANNELS": shape.channels,
        "TAP_STRIDE": 1 if direct else shape.channels,
        "CHANNEL_STRIDE": shape.taps if direct else 1,
        "Q": blocks.columns,
        "RB": blocks.row_lanes,
        "JB": blocks.col_lanes,
        "BC": blocks.channels,
        "HOIST": blocks.hoist,
    }


@functools.lru_cache(maxsize=_CACHED)
def stage(
    shape: Shape,
    element_size: int,
    bias: bool,
    affine: bool,
    activation: str,
    blocks: StageBlocks | None = None,
) -> tuple[Call, int]:
    """The forward pass, and its chunks: x, weight, bias, scale, shift, y, partial."""
    blocks = blocks or tables.forward(shape, element_size)
    tiles = _tiles(shape, blocks, False)
    channel_blocks = _ceil(shape.channels, blocks.channels)
    per_chunk = _ceil(tiles["tiles"], max(1, tables.PROGRAMS // channel_blocks))
    chunks = _ceil(tiles["tiles"], per_chunk)
    arguments = {
        **_sizes(shape, False),
        **tiles,
        **_blocks(shape, blocks),
        "channel_blocks": channel_blocks,
        "tiles_per_chunk": per_chunk,
        "chunks": chunks,
        "HAS_BIAS": bias,
        "AFFINE": affine,
        "ACTIVATION": activation,
        "R": blocks.rows,
    }
    return Call(depthwise_stage.depthwise_stage, (channel_blocks * chunks,), blocks.warps, arguments), chunks


@functools.lru_cache(maxsize=_CACHED)
def add_statistics(chunks: int, channels: int) -> Call:
    """Second stage of the forward pass: partial, sums."""
    arguments = {
        "chunks": chunks,
        "channels": channels,
        "CHUNKS": min(_CHUNKS, configs.power_of_two(chunks)),
        "BLOCK": _BLOCK,
    }
    return Call(depthwise_stage_sums.add_statistics, (_ceil(channels, _BLOCK),), 4, arguments)


def _meeting_tap(axis: Axis) -> int | None:
    """A tap through which every output meets a position of the input, if there is one."""
    for tap in range(axis.kernel):
        first = axis.dilation * tap - axis.low
        if first >= 0 and first + axis.stride * (axis.output - 1) < axis.size:
            return tap
    return None


def sums_bias(shape: Shape) -> bool:
    """Whether the backward pass can sum the bias's gradient on its way."""
    return _meeting_tap(shape.rows) is not None and _meeting_tap(shape.cols) is not None


def _bias_place(shape: Shape) -> tuple[int, int]:
    """The class, and the tap among the class's, that meet every gradient once."""
    of_class, place = 0, 0
    for axis in (shape.rows, shape.cols):
        tap = _meeting_tap(axis) or 0
        step = axis.stride // axis.divisor
        of_class = of_class * axis.stride + axis.dilation * tap % axis.stride
        place = place * _ceil(axis.kernel, step) + tap // step
    return of_class, place


@functools.lru_cache(maxsize=_CACHED)
def stage_backward(
    shape: Shape,
    element_size: int,
    corrected: bool,
    affine: bool,
    activation: str,
    wants_x: bool,
    wants_weight: bool,
    bias: bool,
    blocks: StageBlocks | None = None,
) -> tuple[Call, int, int]:
    """The backward pass, its chunks and classes.

    It takes grad, y, correction, x, scale, shift, weight, grad_x, partial, sums.
    """
    blocks = blocks or tables.backward(shape, element_size)
    tiles = _tiles(shape, blocks, True)
    classes = shape.rows.stride * shape.cols.stride
    channel_blocks = _ceil(shape.channels, blocks.channels)
    per_chunk = _ceil(tiles["tiles"], max(1, tables.BACKWARD_PROGRAMS // (channel_blocks * classes)))
    chunks = _ceil(tiles["tiles"], per_chunk)
    of_class, place = _bias_place(shape)
    arguments = {
        **_sizes(shape, True),
        **tiles,
        **_blocks(shape, blocks),
        "INVERSE_H": shape.rows.inverse,
        "INVERSE_W": shape.cols.inverse,
        "channel_blocks": channel_blocks,
        "tiles_per_chunk": per_chunk,
        "chunks": chunks,
        "CORRECTED": corrected,
        "AFFINE": affine,
        "ACTIVATION": activation,
        "WANTS_X": wants_x,
        "WANTS_WEIGHT": wants_weight,
        "HAS_BIAS": bias,
        "BIAS_CLASS": of_class,
        "BIAS_TAP": place,
    }
    programs = channel_blocks * classes * chunks
    call = Call(depthwise_stage_backward.depthwise_stage_backward, (programs,), blocks.warps, arguments)
    return call, chunks, classes


@functools.lru_cache(maxsize=_CACHED)
def add_gradients(chunks: int, classes: int, shape: Shape, weight: bool, bias: bool, affine: bool) -> Call:
    """Second stage of the backward pass: partial, sums, grad_weight, grad_bias, grad_affine."""
    weight_programs = _ceil((shape.taps + bias) * shape.channels, _BLOCK) if weight else 0
    programs = weight_programs + (_ceil(2 * shape.channels, _BLOCK) if affine else 0)
    arguments = {
        "chunks": chunks,
        "rows": chunks * classes,
        "channels": shape.channels,
        "weight_programs": weight_programs,
        "TAPS": shape.taps,
        "HAS_BIAS": bias,
        "CHUNKS": min(_CHUNKS, configs.power_of_two(chunks * classes)),
        "BLOCK": _BLOCK,
    }
    return Call(depthwise_stage_sums.add_gradients, (programs,), 4, arguments)
