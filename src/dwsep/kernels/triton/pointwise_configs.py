"""Blocks of the pointwise stage by shape class: by the shape alone, so that a shape always has the same bits.

Everything here is short of memory's bandwidth, not of arithmetic, but for float32 without TF32. So a block of channels
holds all of them where it can: the other tensor is then read once, and what lies beyond the last channel costs tensor
cores alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from dwsep.kernels.triton.configs import power_of_two


@dataclass(frozen=True)
class PointwiseBlocks:
    """What one program computes.

    Attributes:
        pixels: Pixels of a tile.
        channels: Input channels of a tile, or of one step of the product.
        outputs: Output channels of a tile, or of one step of the product.
        warps: Warps of a program.
        stages: Loads ahead of the products.
        chunks: Chunks of pixels, each with sums of its own, or for the weight's gradient programs: as many at most.
    """

    pixels: int
    channels: int
    outputs: int
    warps: int
    stages: int
    chunks: int


def _wide(channels: int, most: int) -> int:
    """Channels that a program holds: all up to ``most``, else as many as leave few beyond the last."""
    block = max(16, power_of_two(channels))
    if block <= most:
        return block
    block = most
    while block > 32 and -(-channels // block) * block > channels * 1.1:
        block //= 2
    return block


def _step(channels: int, most: int) -> int:
    """Channels of one step of a product that goes over all of them."""
    block = max(16, power_of_two(channels))
    if block <= most:
        return block
    return most if -(-channels // most) * most <= channels * 1.15 else most // 2


_CHUNKS = 2048


def _tile(pixels: int, block: int, blocks: int, most: int) -> tuple[int, int]:
    """Pixels of a tile with a block of channels, and its warps.

    Where a program takes one tile, a thread may hold ``most`` elements of it. Where it takes more, their sums are in
    registers all the while: there a thread holds 16, so that several programs share a processor.
    """
    warps = 8 if block > 32 else 4
    tile = max(16, min(128, 512 * warps // block))
    if most > 16 and -(-pixels // (2 * tile)) <= _CHUNKS:
        tile = min(128, 2 * tile)
    # Fewer where there would not be a program for each multiprocessor of a large GPU.
    while tile > 16 and -(-pixels // tile) * blocks < 256:
        tile //= 2
    return tile, warps


@functools.lru_cache(maxsize=1024)
def forward(pixels: int, channels: int, outputs: int, element_size: int, tensor_cores: bool = True) -> PointwiseBlocks:
    """Blocks of the forward pass."""
    narrow = element_size == 2
    block = _wide(outputs, 128 if narrow else 64)
    step = _step(channels, (64 if narrow else 32) if tensor_cores else 16)
    tile, warps = _tile(pixels, block, -(-outputs // block), 32 if narrow else 16)
    return PointwiseBlocks(tile, step, block, warps, 3, _CHUNKS)


@functools.lru_cache(maxsize=1024)
def input_gradient(pixels: int, channels: int, outputs: int, element_size: int) -> PointwiseBlocks:
    """Blocks of the input's gradient, whose product goes over the outputs."""
    narrow = element_size == 2
    block = _wide(channels, 128 if narrow else 64)
    step = _step(outputs, 64 if narrow else 32)
    tile, warps = _tile(pixels, block, -(-channels // block), 16)  # x's tile is there, too
    return PointwiseBlocks(tile, block, step, warps, 3 if narrow else 2, _CHUNKS)


@functools.lru_cache(maxsize=1024)
def weight_gradient(pixels: int, channels: int, outputs: int, element_size: int) -> PointwiseBlocks:
    """Blocks of the weight's gradient, whose product goes over the pixels.

    Every program leaves a block of sums: few of them, of which each goes over many pixels.
    """
    block, rows = _wide(channels, 64), _wide(outputs, 64)
    return PointwiseBlocks(64 if element_size == 2 else 32, block, rows, 8 if block * rows > 2048 else 4, 3, 512)


@functools.lru_cache(maxsize=1024)
def both_gradients(channels: int, outputs: int, element_size: int) -> PointwiseBlocks | None:
    """Blocks of both gradients in one pass; None where the weight is too large for one program."""
    narrow = element_size == 2
    block, rows = max(16, power_of_two(channels)), max(16, power_of_two(outputs))
    if block * rows > (8192 if narrow else 4096):
        return None
    tile = max(16, min(32, 4096 // max(block, rows)))
    # As many tiles are on their way as make some 12 KB: grad, y and x.
    loaded = tile * (2 * rows + block) * element_size
    stages = 2 + min(2, 12_000 // loaded)
    return PointwiseBlocks(tile, block, rows, 8 if max(block, rows) > 64 else 4, stages, 512)
