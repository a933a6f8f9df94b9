"""Launches of the depthwise kernels: grids and arguments from shapes and blocks, worked out once for each problem."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from dwsep.kernels.triton import configs
from dwsep.kernels.triton.configs import Blocks
from dwsep.kernels.triton.jit import channels_last, channels_last_weight, planes, planes_weight, reduction
from dwsep.kernels.triton.shapes import Shape

# Programs of the weight gradient's first stage: several for each multiprocessor of a large GPU, by the shape alone.
_PROGRAMS = 1024
_CACHED = 4096
# That a thread can have.
MOST_REGISTERS = 255


class Call:
    """A kernel with its grid and every argument but the tensors.

    Triton looks up the compiled kernel by all of a call's arguments, which for kernels with this many takes longer than
    many of them run: here it is looked up by what can still change between the calls of one problem.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, ...], warps: int, arguments: dict[str, Any], stages: int = 3
    ) -> None:
        self.kernel = kernel
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.warps = warps
        self.stages = stages  # of loads ahead of the products of a loop
        self.arguments = tuple(arguments[name] for name in kernel.arg_names if name in arguments)
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *tensors: Tensor) -> None:
        """Runs the kernel on its tensors, in the order of its arguments."""
        key: tuple[Any, ...] = (tensors[0].device.index, *(tensor.dtype for tensor in tensors))
        for tensor in tensors:
            if tensor.data_ptr() % 16:
                key = (*key, *(tensor.data_ptr() % 16 == 0 for tensor in tensors))
                break
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[self.grid](*tensors, *self.arguments)
            return
        compiled = self.kernel[self.grid](*tensors, *self.arguments, num_warps=self.warps, num_stages=self.stages)
        if compiled is not None:  # the interpreter returns none
            self._compiled[key] = self._without_spills(compiled, tensors)

    def _without_spills(self, compiled: Any, tensors: tuple[Tensor, ...]) -> Any:
        """The kernel that later calls launch.

        Left to itself, the assembler at times stores registers around a loop for room for one more program. Told to
        keep to those that it took, it mostly finds room in them, and else in as many as a thread can have.
        """
        for registers in (compiled.n_regs, MOST_REGISTERS):
            if not compiled.n_spills:
                break
            limited = self.kernel.warmup(
                *tensors, *self.arguments, grid=self.grid,
                num_warps=self.warps, num_stages=self.stages, maxnreg=registers,
            )  # fmt: skip
            limited[self.grid]  # loads it, which counts
            if limited.n_spills < compiled.n_spills:
                compiled = limited
        return compiled


def _ceil(n: int, step: int) -> int:
    return -(-n // step)


def _geometry(shape: Shape) -> dict[str, Any]:
    rows, cols = shape.rows, shape.cols
    return {
        "KH": rows.kernel,
        "KW": cols.kernel,
        "SH": rows.stride,
        "SW": cols.stride,
        "DH": rows.dilation,
        "DW": cols.dilation,
        "GW": cols.divisor,
        "MULTIPLIER": shape.multiplier,
        "WIDE": shape.wide,
    }


def _direction(shape: Shape, bias: bool, gradient: bool, activation: str, transposed: bool) -> dict[str, Any]:
    return {
        "GH": shape.rows.divisor,
        "INVERSE_H": shape.rows.inverse,
        "INVERSE_W": shape.cols.inverse,
        "TRANSPOSED": transposed,
        "HAS_BIAS": bias,
        "ACTIVATION": activation,
        "GRADIENT": gradient,
    }


def _sizes(shape: Shape, transposed: bool) -> dict[str, int]:
    rows, cols = shape.rows, shape.cols
    x, out = (rows.size, cols.size), (rows.output, cols.output)
    src, dst = (out, x) if transposed else (x, out)
    return {
        "src_h": src[0],
        "src_w": src[1],
        "dst_h": dst[0],
        "dst_w": dst[1],
        "low_h": rows.low,
        "low_w": cols.low,
    }


@functools.lru_cache(maxsize=_CACHED)
def correlate_last(
    shape: Shape,
    transposed: bool,
    element_size: int,
    bias: bool = False,
    activation: str = "none",
    gradient: bool = False,
    blocks: Blocks | None = None,
) -> Call:
    """Forward pass or, ``transposed``, the input's gradient; channels innermost: src, taps, bias, outer, dst."""
    blocks = blocks or configs.channels_last(shape, transposed, element_size)
    rows, cols = shape.rows, shape.cols
    src_channels, dst_channels = shape.channels, shape.out_channels
    if transposed:
        src_channels, dst_channels = dst_channels, src_channels
    row_blocks = _ceil(configs.class_rows(shape, transposed), blocks.rows)
    col_blocks = _ceil(configs.length(cols, transposed), blocks.columns * blocks.groups)
    channel_blocks = _ceil(dst_channels, blocks.channels)
    arguments = {
        **_sizes(shape, transposed),
        **_geometry(shape),
        **_direction(shape, bias, gradient, activation, transposed),
        "channel_blocks": channel_blocks,
        "col_blocks": col_blocks,
        "row_blocks": row_blocks,
        "SRC_CHANNELS": src_channels,
        "DST_CHANNELS": dst_channels,
        "Q": blocks.columns,
        "RB": blocks.rows,
        "JB": blocks.groups,
        "BC": blocks.channels,
        "KC": blocks.taps,
        "UNROLL": blocks.unroll,
    }
    programs = channel_blocks * cols.spacing * col_blocks * row_blocks * shape.batch
    classes = rows.stride * cols.stride if transposed else 1
    return Call(channels_last.correlate, (programs, classes), blocks.warps, arguments)


@functools.lru_cache(maxsize=_CACHED)
def correlate_planes(
    shape: Shape,
    transposed: bool,
    element_size: int,
    bias: bool = False,
    activation: str = "none",
    gradient: bool = False,
    blocks: Blocks | None = None,
) -> Call:
    """Forward pass or, ``transposed``, the input's gradient; contiguous: src, weight, bias, outer, dst."""
    blocks = blocks or configs.planes(shape, transposed, element_size)
    cols = shape.cols
    dst_channels = shape.channels if transposed else shape.out_channels
    dst_rows = shape.rows.size if transposed else shape.rows.output
    count = shape.batch * dst_channels
    col_blocks = _ceil(configs.parts(cols, transposed, blocks.columns), blocks.groups)
    row_blocks = _ceil(dst_rows, blocks.rows)
    first = cols.low - cols.kernel + 1 if transposed else -cols.low
    arguments = {
        **_sizes(shape, transposed),
        **_geometry(shape),
        **_direction(shape, bias, gradient, activation, transposed),
        "planes": count,
        "dst_channels": dst_channels,
        "col_blocks": col_blocks,
        "row_blocks": row_blocks,
        "SHIFT": first % blocks.columns if blocks.vectors else -1,
        "Q": blocks.columns,
        "PB": blocks.channels,
        "RB": blocks.rows,
        "JB": blocks.groups,
        "KC": blocks.taps,
        "UNROLL": blocks.unroll,
    }
    programs = col_blocks * row_blocks * _ceil(count, blocks.channels)
    return Call(planes.correlate_planes, (programs,), blocks.warps, arguments)


@functools.lru_cache(maxsize=_CACHED)
def weight_sums_last(
    shape: Shape, element_size: int, bias: bool = False, blocks: Blocks | None = None
) -> tuple[Call, int]:
    """First stage of the weight's gradient, channels innermost, and its chunks: x, grad, partial."""
    blocks = blocks or configs.channels_last_weight(shape, element_size)
    rows, cols = shape.rows, shape.cols
    row_blocks = _ceil(rows.output, blocks.rows)
    col_blocks = _ceil(configs.length(cols, False), blocks.columns * blocks.groups)
    channel_blocks = _ceil(shape.out_channels, blocks.channels)
    tap_groups = _ceil(rows.kernel, blocks.tap_rows) * _ceil(cols.kernel, blocks.taps)
    tiles = shape.batch * row_blocks * col_blocks * cols.spacing
    per_chunk = _ceil(tiles, max(1, _PROGRAMS // (channel_blocks * tap_groups)))
    chunks = _ceil(tiles, per_chunk)
    arguments = {
        **_sizes(shape, False),
        **_geometry(shape),
        "channel_blocks": channel_blocks,
        "col_blocks": col_blocks,
        "row_blocks": row_blocks,
        "tiles": tiles,
        "tiles_per_chunk": per_chunk,
        "HAS_BIAS": bias,
        "SRC_CHANNELS": shape.channels,
        "DST_CHANNELS": shape.out_channels,
        "Q": blocks.columns,
        "RB": blocks.rows,
        "JB": blocks.groups,
        "BC": blocks.channels,
        "KC": blocks.taps,
        "KR": blocks.tap_rows,
    }
    programs = channel_blocks * tap_groups * chunks
    return Call(channels_last_weight.weight_sums, (programs,), blocks.warps, arguments), chunks


@functools.lru_cache(maxsize=_CACHED)
def weight_sums_planes(
    shape: Shape, element_size: int, bias: bool = False, blocks: Blocks | None = None
) -> tuple[Call, int]:
    """First stage of the weight's gradient, contiguous, and its chunks: x, grad, partial."""
    blocks = blocks or configs.planes_weight(shape, element_size)
    rows, cols = shape.rows, shape.cols
    row_blocks = _ceil(rows.output, blocks.rows)
    col_blocks = _ceil(configs.parts(cols, False, blocks.columns), blocks.groups)
    tap_groups = _ceil(rows.kernel, blocks.tap_rows) * _ceil(cols.kernel, blocks.taps)
    tiles = _ceil(shape.batch, blocks.channels) * row_blocks * col_blocks
    per_chunk = _ceil(tiles, max(1, _PROGRAMS // (shape.out_channels * tap_groups)))
    chunks = _ceil(tiles, per_chunk)
    arguments = {
        **_sizes(shape, False),
        **_geometry(shape),
        "batch": shape.batch,
        "src_channels": shape.channels,
        "dst_channels": shape.out_channels,
        "col_blocks": col_blocks,
        "row_blocks": row_blocks,
        "tiles": tiles,
        "tiles_per_chunk": per_chunk,
        "HAS_BIAS": bias,
        "SHIFT": -cols.low % blocks.columns if blocks.vectors else -1,
        "Q": blocks.columns,
        "PB": blocks.channels,
        "RB": blocks.rows,
        "JB": blocks.groups,
        "KC": blocks.taps,
        "KR": blocks.tap_rows,
    }
    programs = shape.out_channels * tap_groups * chunks
    return Call(planes_weight.weight_sums_planes, (programs,), blocks.warps, arguments), chunks


@functools.lru_cache(maxsize=_CACHED)
def add_chunks(chunks: int, taps: int, channels: int, bias: bool) -> Call:
    """Second stage of the weight's gradient: partial, grad_weight, grad_bias."""
    block = 32
    arguments = {
        "chunks": chunks,
        "channels": channels,
        "TAPS": taps,
        "HAS_BIAS": bias,
        "CHUNKS": min(64, configs.power_of_two(chunks)),
        "BLOCK": block,
    }
    return Call(reduction.add_chunks, (_ceil((taps + bias) * channels, block),), 4, arguments)
