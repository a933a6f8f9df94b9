"""Launches of the separable convolution: where one kernel pays, its blocks, grid and arguments."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from dwsep.kernels.triton import configs, depthwise_stage_configs, support
from dwsep.kernels.triton.jit import separable
from dwsep.kernels.triton.launch import _CACHED, Call, _ceil, _geometry, _sizes
from dwsep.kernels.triton.shapes import Shape

# Output channels whose sums fit a program's registers: with more of them the depthwise result would be computed again.
MOST_OUTPUTS = 256
_MOST_COLUMNS = 16
# Without a loop over rows of taps the compiler loads so much ahead that fewer sums fit.
_MOST_OUTPUTS_OF_LINES = 128
# Below so many programs a GPU is not full, and their loops over many blocks of channels take longest.
_FEW_PROGRAMS = 64
_MANY_CHANNELS = 256
# Inner channels a block: the depth of two tensor-core products of half precision.
_INNER_BLOCK = 32


@dataclass(frozen=True)
class SeparableBlocks:
    """What one program computes: ``rows`` x ``groups`` x ``columns`` pixels of ``outputs`` channels.

    Attributes:
        columns: Output columns that a thread holds in registers.
        rows: Rows of a tile.
        groups: Groups of columns, side by side.
        channels: Inner channels of a step.
        outputs: Output channels, rounded up.
        warps: Warps of a program.
    """

    columns: int
    rows: int
    groups: int
    channels: int
    outputs: int
    warps: int


@functools.lru_cache(maxsize=_CACHED)
def blocks_of(shape: Shape, out_channels: int) -> SeparableBlocks:
    """Blocks for a problem: up to 64 registers of sums a thread, at least the 16 rows of a tensor core's product."""
    outputs = max(16, configs.power_of_two(out_channels))
    warps = 4 if outputs <= 32 else 8
    lanes = 32
    cols = shape.cols
    length = configs.length(cols, False)
    most = 4 if outputs <= 128 else 2
    columns = configs._columns(length, min(cols.kernel, 8), configs._step(cols, False), most)
    groups = _ceil(length, columns)
    # No more lanes than a small image has.
    lanes = max(16, min(lanes, configs.power_of_two(groups) * configs.power_of_two(shape.rows.output)))
    rows, groups = depthwise_stage_configs.tile(groups, shape.rows.output, lanes)
    return SeparableBlocks(columns, rows, groups, _INNER_BLOCK, outputs, warps)


def _grid(shape: Shape, blocks: SeparableBlocks) -> tuple[int, dict[str, int]]:
    cols = shape.cols
    residues = min(cols.spacing, cols.output)
    row_blocks = _ceil(shape.rows.output, blocks.rows)
    col_blocks = _ceil(configs.length(cols, False), blocks.columns * blocks.groups)
    loops = {"residues": residues, "col_blocks": col_blocks, "row_blocks": row_blocks}
    return shape.batch * row_blocks * col_blocks * residues, loops


@functools.lru_cache(maxsize=_CACHED)
def pays(shape: Shape, out_channels: int) -> bool:
    """Whether one kernel is the better choice for a problem, by the shape alone."""
    if out_channels > MOST_OUTPUTS or shape.cols.kernel > _MOST_COLUMNS:
        return False
    if shape.rows.kernel == 1 and out_channels > _MOST_OUTPUTS_OF_LINES:
        return False
    programs, _ = _grid(shape, blocks_of(shape, out_channels))
    return programs >= _FEW_PROGRAMS or shape.out_channels <= _MANY_CHANNELS


@functools.lru_cache(maxsize=_CACHED)
def separable_call(
    shape: Shape,
    out_channels: int,
    bias: bool,
    pointwise_bias: bool,
    inner_activation: str,
    activation: str,
    residual: str,
    precision: str,
) -> Call:
    """The kernel of a problem: x, weight, bias, pointwise, pointwise_bias, dst."""
    blocks = blocks_of(shape, out_channels)
    programs, loops = _grid(shape, blocks)
    wide = shape.wide or shape.batch * shape.rows.output * shape.cols.output * out_channels >= 2**31 - 2**26
    arguments = {
        **_sizes(shape, False),
        **_geometry(shape),
        **loops,
        "HAS_BIAS": bias,
        "HAS_POINTWISE_BIAS": pointwise_bias,
        "INNER_ACTIVATION": inner_activation,
        "ACTIVATION": activation,
        "RESIDUAL": residual,
        "PRECISION": precision,
        "WIDE": wide,
        "INNER": shape.out_channels,
        "OUT": out_channels,
        "Q": blocks.columns,
        "RB": blocks.rows,
        "JB": blocks.groups,
        "BC": blocks.channels,
        "BK": blocks.outputs,
    }
    return Call(separable.separable, (programs,), blocks.warps, arguments)


def precision_of(dtype: torch.dtype) -> str:
    """How float32 products are taken: as PyTorch's convolutions may take them, ``"ieee"`` unless TF32 is allowed."""
    return "tf32" if dtype == torch.float32 and support.allows_tf32() else "ieee"
