"""Launches of the depthwise kernels: grids and arguments from shapes and blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dwsep.kernels.triton import channels_last, channels_last_weight, configs, planes, planes_weight, reduction
from dwsep.kernels.triton.configs import Blocks
from dwsep.kernels.triton.shapes import Shape

# Programs of the weight gradient's first stage: several for each multiprocessor of a large GPU, by the shape alone.
_PROGRAMS = 1024


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


def _direction(shape: Shape, bias: Tensor | None, outer: Tensor | None, activation: str, transposed: bool) -> dict:
    return {
        "GH": shape.rows.divisor,
        "INVERSE_H": shape.rows.inverse,
        "INVERSE_W": shape.cols.inverse,
        "TRANSPOSED": transposed,
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation,
        "GRADIENT": outer is not None,
    }


def _sizes(shape: Shape, transposed: bool) -> tuple[int, int, int, int, int, int]:
    """Rows, columns, rows and columns of source and destination, and the low padding of both axes."""
    rows, cols = shape.rows, shape.cols
    x, out = (rows.size, cols.size), (rows.output, cols.output)
    return (*out, *x, rows.low, cols.low) if transposed else (*x, *out, rows.low, cols.low)


def correlate_last(
    src: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outer: Tensor | None,
    dst: Tensor,
    shape: Shape,
    activation: str,
    transposed: bool,
    blocks: Blocks | None,
) -> None:
    """Fills ``dst`` with the forward pass, or with the input's gradient; channels innermost and dense."""
    blocks = blocks or configs.channels_last(shape, transposed, src.element_size())
    rows, cols = shape.rows, shape.cols
    src_channels, dst_channels = shape.channels, shape.out_channels
    if transposed:
        src_channels, dst_channels = dst_channels, src_channels
    row_blocks = _ceil(configs.class_rows(shape, transposed), blocks.rows)
    col_blocks = _ceil(configs.length(cols, transposed), blocks.columns * blocks.groups)
    channel_blocks = _ceil(dst_channels, blocks.channels)
    # Tap by tap, so that neighbouring channels' weights lie side by side.
    taps = torch.empty(shape.taps, shape.out_channels, dtype=torch.float32, device=src.device)
    taps.copy_(weight.reshape(shape.out_channels, shape.taps).t())
    grid = (
        channel_blocks * cols.spacing * col_blocks * row_blocks * shape.batch,
        rows.stride * cols.stride if transposed else 1,
    )
    channels_last.correlate[grid](
        src,
        taps,
        taps if bias is None else bias,
        src if outer is None else outer,
        dst,
        src_channels,
        dst_channels,
        shape.out_channels,
        *_sizes(shape, transposed),
        channel_blocks,
        col_blocks,
        row_blocks,
        **_geometry(shape),
        **_direction(shape, bias, outer, activation, transposed),
        CHANNEL_STEP=configs.channel_step(src_channels, dst_channels),
        Q=blocks.columns,
        RB=blocks.rows,
        JB=blocks.groups,
        BC=blocks.channels,
        KC=blocks.taps,
        num_warps=blocks.warps,
    )


def correlate_planes(
    src: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outer: Tensor | None,
    dst: Tensor,
    shape: Shape,
    activation: str,
    transposed: bool,
    blocks: Blocks | None,
) -> None:
    """Fills ``dst`` with the forward pass, or with the input's gradient; contiguous."""
    blocks = blocks or configs.planes(shape, transposed, src.element_size())
    cols = shape.cols
    dst_channels = shape.channels if transposed else shape.out_channels
    dst_rows = shape.rows.size if transposed else shape.rows.output
    planes_count = shape.batch * dst_channels
    col_blocks = _ceil(configs.parts(cols, transposed, blocks.columns), blocks.groups)
    row_blocks = _ceil(dst_rows, blocks.rows)
    first = cols.low - cols.kernel + 1 if transposed else -cols.low
    planes.correlate_planes[(col_blocks * row_blocks * _ceil(planes_count, blocks.channels),)](
        src,
        weight,
        weight if bias is None else bias,
        src if outer is None else outer,
        dst,
        planes_count,
        dst_channels,
        *_sizes(shape, transposed),
        col_blocks,
        row_blocks,
        **_geometry(shape),
        **_direction(shape, bias, outer, activation, transposed),
        SHIFT=first % blocks.columns if blocks.vectors else -1,
        Q=blocks.columns,
        PB=blocks.channels,
        RB=blocks.rows,
        JB=blocks.groups,
        KC=blocks.taps,
        num_warps=blocks.warps,
    )


def weight_gradient_last(
    x: Tensor, grad: Tensor, grad_weight: Tensor, grad_bias: Tensor | None, shape: Shape, blocks: Blocks | None
) -> None:
    """Fills the gradients of weight and bias; channels innermost and dense."""
    blocks = blocks or configs.channels_last_weight(shape, x.element_size())
    rows, cols = shape.rows, shape.cols
    row_blocks = _ceil(rows.output, blocks.rows)
    col_blocks = _ceil(configs.length(cols, False), blocks.columns * blocks.groups)
    channel_blocks = _ceil(shape.out_channels, blocks.channels)
    tap_groups = _ceil(rows.kernel, blocks.tap_rows) * _ceil(cols.kernel, blocks.taps)
    tiles = shape.batch * row_blocks * col_blocks * cols.spacing
    per_chunk = _ceil(tiles, max(1, _PROGRAMS // (channel_blocks * tap_groups)))
    partial = _partial(x, shape, _ceil(tiles, per_chunk), grad_bias)
    channels_last_weight.weight_sums[(channel_blocks * tap_groups * partial.shape[0],)](
        x,
        grad,
        partial,
        shape.channels,
        shape.out_channels,
        *_sizes(shape, False),
        channel_blocks,
        col_blocks,
        row_blocks,
        tiles,
        per_chunk,
        **_geometry(shape),
        HAS_BIAS=grad_bias is not None,
        CHANNEL_STEP=configs.channel_step(shape.channels, shape.out_channels),
        Q=blocks.columns,
        RB=blocks.rows,
        JB=blocks.groups,
        BC=blocks.channels,
        KC=blocks.taps,
        KR=blocks.tap_rows,
        num_warps=blocks.warps,
    )
    _add_chunks(partial, grad_weight, grad_bias, shape)


def weight_gradient_planes(
    x: Tensor, grad: Tensor, grad_weight: Tensor, grad_bias: Tensor | None, shape: Shape, blocks: Blocks | None
) -> None:
    """Fills the gradients of weight and bias; contiguous."""
    blocks = blocks or configs.planes_weight(shape, x.element_size())
    rows, cols = shape.rows, shape.cols
    row_blocks = _ceil(rows.output, blocks.rows)
    col_blocks = _ceil(configs.parts(cols, False, blocks.columns), blocks.groups)
    tap_groups = _ceil(rows.kernel, blocks.tap_rows) * _ceil(cols.kernel, blocks.taps)
    tiles = _ceil(shape.batch, blocks.channels) * row_blocks * col_blocks
    per_chunk = _ceil(tiles, max(1, _PROGRAMS // (shape.out_channels * tap_groups)))
    partial = _partial(x, shape, _ceil(tiles, per_chunk), grad_bias)
    planes_weight.weight_sums_planes[(shape.out_channels * tap_groups * partial.shape[0],)](
        x,
        grad,
        partial,
        shape.batch,
        shape.channels,
        shape.out_channels,
        *_sizes(shape, False),
        col_blocks,
        row_blocks,
        tiles,
        per_chunk,
        **_geometry(shape),
        HAS_BIAS=grad_bias is not None,
        SHIFT=-cols.low % blocks.columns if blocks.vectors else -1,
        Q=blocks.columns,
        PB=blocks.channels,
        RB=blocks.rows,
        JB=blocks.groups,
        KC=blocks.taps,
        KR=blocks.tap_rows,
        num_warps=blocks.warps,
    )
    _add_chunks(partial, grad_weight, grad_bias, shape)


def _partial(x: Tensor, shape: Shape, chunks: int, grad_bias: Tensor | None) -> Tensor:
    sums = shape.taps + (grad_bias is not None)
    return torch.empty(chunks, sums, shape.out_channels, dtype=torch.float32, device=x.device)


def _add_chunks(partial: Tensor, grad_weight: Tensor, grad_bias: Tensor | None, shape: Shape) -> None:
    block = 32
    chunks, sums, channels = partial.shape
    reduction.add_chunks[(_ceil(sums * channels, block),)](
        partial,
        grad_weight,
        grad_weight if grad_bias is None else grad_bias,
        chunks,
        channels,
        TAPS=shape.taps,
        HAS_BIAS=grad_bias is not None,
        CHUNKS=min(64, configs.power_of_two(chunks)),
        BLOCK=block,
        num_warps=4,
    )
