"""Launches of the pointwise stage's kernels, worked out once for each problem."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from dwsep.kernels.triton import pointwise_configs as configs
from dwsep.kernels.triton.configs import power_of_two
from dwsep.kernels.triton.jit import partials, pointwise, pointwise_backward
from dwsep.kernels.triton.launch import _CACHED, Call, _ceil
from dwsep.kernels.triton.pointwise_configs import PointwiseBlocks


@dataclass(frozen=True)
class PointwiseProblem:
    """All that a pointwise stage's kernels are compiled and launched by.

    Attributes:
        pixels: of the batch.
        channels: of x.
        outputs: channels of y.
        element_size: of x and y, in bytes.
        activation: between x's norm and the product.
        affine: whether x has a scale and a shift.
        precision: of float32 products, ``"ieee"`` or ``"tf32"``.
        wide_dot: whether the GPU multiplies this type in float32 alone.
        bias: whether there is one; of a gradient, whether its own is wanted.
        corrected: of a gradient, whether there is a correction.
    """

    pixels: int
    channels: int
    outputs: int
    element_size: int
    activation: str
    affine: bool
    precision: str
    wide_dot: bool
    bias: bool = False
    corrected: bool = False

    @property
    def wide(self) -> bool:
        """Whether offsets into the tensors need 64 bits; the margin covers masked elements beyond the tensor."""
        return self.pixels * max(self.channels, self.outputs) >= 2**31 - 2**26

    @property
    def tensor_cores(self) -> bool:
        """Whether those multiply, rather than one multiply-add after the other."""
        return not self.wide_dot and (self.element_size == 2 or self.precision == "tf32")

    @property
    def product_size(self) -> int:
        """Bytes of an element as the products take it."""
        return 4 if self.wide_dot else self.element_size


def chunks_of(tiles: int, most: int) -> tuple[int, int]:
    """Chunks of as many tiles each, up to ``most`` of them, and the tiles of one."""
    per_chunk = _ceil(tiles, max(1, most))
    return _ceil(tiles, per_chunk), per_chunk


def _arguments(problem: PointwiseProblem, chosen: PointwiseBlocks, per_chunk: int, **others: Any) -> dict[str, Any]:
    return {
        "pixels": problem.pixels,
        "tiles": _ceil(problem.pixels, chosen.pixels),
        "tiles_per_chunk": per_chunk,
        "C": problem.channels,
        "K": problem.outputs,
        "ACTIVATION": problem.activation,
        "AFFINE": problem.affine,
        "HAS_BIAS": problem.bias,
        "CORRECTED": problem.corrected,
        "WIDE": problem.wide,
        "WIDE_DOT": problem.wide_dot,
        "PRECISION": problem.precision,
        "SINGLE": per_chunk == 1,
        "BP": chosen.pixels,
        "BC": chosen.channels,
        "BK": chosen.outputs,
        **others,
    }


@functools.lru_cache(maxsize=_CACHED)
def forward(problem: PointwiseProblem, blocks: PointwiseBlocks | None = None) -> tuple[Call, int]:
    """The forward pass and its chunks: x, weight, scale, shift, bias, y, partial."""
    sizes = problem.pixels, problem.channels, problem.outputs, problem.product_size
    blocks = blocks or configs.forward(*sizes, problem.tensor_cores)
    count = _ceil(problem.outputs, blocks.outputs)
    chunks, per_chunk = chunks_of(_ceil(problem.pixels, blocks.pixels), blocks.chunks)
    arguments = _arguments(problem, blocks, per_chunk, blocks=count)
    return Call(pointwise.forward, (chunks * count,), blocks.warps, arguments, blocks.stages), chunks


@functools.lru_cache(maxsize=_CACHED)
def input_gradient(problem: PointwiseProblem, blocks: PointwiseBlocks | None = None) -> tuple[Call, int]:
    """The input's gradient and its chunks: grad, y, correction, x, scale, shift, weight, grad_x, partial."""
    sizes = problem.pixels, problem.channels, problem.outputs, problem.product_size
    blocks = blocks or configs.input_gradient(*sizes)
    count = _ceil(problem.channels, blocks.channels)
    chunks, per_chunk = chunks_of(_ceil(problem.pixels, blocks.pixels), blocks.chunks)
    arguments = _arguments(problem, blocks, per_chunk, blocks=count)
    return Call(pointwise_backward.input_gradient, (chunks * count,), blocks.warps, arguments, blocks.stages), chunks


@functools.lru_cache(maxsize=_CACHED)
def weight_gradient(problem: PointwiseProblem, blocks: PointwiseBlocks | None = None) -> tuple[Call, int]:
    """The weight's gradient, first stage, and its chunks: grad, y, correction, x, scale, shift, partial."""
    sizes = problem.pixels, problem.channels, problem.outputs, problem.product_size
    blocks = blocks or configs.weight_gradient(*sizes)
    count, channel_blocks = _ceil(problem.outputs, blocks.outputs), _ceil(problem.channels, blocks.channels)
    tiles = _ceil(problem.pixels, blocks.pixels)
    chunks, per_chunk = chunks_of(tiles, min(blocks.chunks // (count * channel_blocks), _ceil(tiles, 4)))
    arguments = _arguments(problem, blocks, per_chunk, blocks=count, channel_blocks=channel_blocks)
    grid = (chunks * count * channel_blocks,)
    return Call(pointwise_backward.weight_gradient, grid, blocks.warps, arguments, blocks.stages), chunks


@functools.lru_cache(maxsize=_CACHED)
def both_gradients(problem: PointwiseProblem, blocks: PointwiseBlocks | None = None) -> tuple[Call, int] | None:
    """Both gradients, first stage, and their chunks; None where a program cannot hold the weight.

    Takes grad, y, correction, x, scale, shift, weight, grad_x, partial, partial_weight.
    """
    blocks = blocks or configs.both_gradients(problem.channels, problem.outputs, problem.product_size)
    if blocks is None:
        return None
    chunks, per_chunk = chunks_of(_ceil(problem.pixels, blocks.pixels), blocks.chunks)
    arguments = _arguments(problem, blocks, per_chunk)
    return Call(pointwise_backward.both_gradients, (chunks,), blocks.warps, arguments, blocks.stages), chunks


@functools.lru_cache(maxsize=_CACHED)
def add_partials(chunks: int, elements: int, first_elements: int) -> Call:
    """The second stage of all sums: partial, the first sums, the others."""
    count = min(256, power_of_two(chunks))
    block = min(512, max(16, 4096 // count))
    arguments = {
        "chunks": chunks,
        "elements": elements,
        "first_elements": first_elements,
        "CHUNKS": count,
        "BLOCK": block,
    }
    return Call(partials.add_partials, (_ceil(elements, block),), 4, arguments)


def without_weight(problem: PointwiseProblem) -> PointwiseProblem:
    """The problem as ``input_gradient`` has it, which has nothing to do with a bias."""
    return replace(problem, bias=False) if problem.bias else problem
