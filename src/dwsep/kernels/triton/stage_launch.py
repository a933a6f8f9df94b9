"""Launches of the stages' kernels that walk a tensor channel by channel, worked out once for each problem."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from dwsep.kernels.triton.configs import power_of_two
from dwsep.kernels.triton.jit import stage_gate, stage_norm, stage_output
from dwsep.kernels.triton.launch import _CACHED, Call, _ceil
from dwsep.kernels.triton.pointwise_launch import chunks_of

_WARPS = 4
_GRADIENT_WARPS = 8
# Elements of a tile: several of 16 bytes for each thread. Programs of a launch that leaves sums, by the shape alone.
_TILE = 4096
_SQUEEZE_TILE = 2048
_PROGRAMS = 2048


@dataclass(frozen=True)
class TensorProblem:
    """A tensor (images, pixels, channels) as the kernels walk it; all pixels may be those of one image."""

    images: int
    pixels: int
    channels: int
    activation: str = "none"
    affine: bool = False

    @property
    def wide(self) -> bool:
        """Whether offsets into the tensor need 64 bits; the margin covers masked elements beyond it."""
        return self.images * self.pixels * self.channels >= 2**31 - 2**26


def tile_of(problem: TensorProblem, elements: int = _TILE) -> tuple[int, int]:
    """Pixels and channels of a tile."""
    channels = min(128, max(16, power_of_two(problem.channels)))
    while channels > 32 and _ceil(problem.channels, channels) * channels > problem.channels * 1.15:
        channels //= 2
    return min(elements // channels, power_of_two(problem.pixels)), channels


def _walk(problem: TensorProblem, elements: int = _TILE, **others: Any) -> tuple[int, int, dict[str, Any]]:
    """Tiles of an image, blocks of channels, and the arguments that all kernels share."""
    pixels, channels = tile_of(problem, elements)
    blocks, tiles = _ceil(problem.channels, channels), _ceil(problem.pixels, pixels)
    arguments = {
        "pixels": problem.pixels,
        "tiles": tiles,
        "blocks": blocks,
        "C": problem.channels,
        "ACTIVATION": problem.activation,
        "AFFINE": problem.affine,
        "WIDE": problem.wide,
        "BP": pixels,
        "BC": channels,
        **others,
    }
    return tiles, blocks, arguments


@functools.lru_cache(maxsize=_CACHED)
def channel_sums(problem: TensorProblem) -> tuple[Call, int]:
    """A tensor's sums, first stage, and its chunks: x, partial."""
    tiles, blocks, arguments = _walk(problem)
    chunks, arguments["tiles_per_chunk"] = chunks_of(tiles, _PROGRAMS // blocks)
    return Call(stage_norm.channel_sums, (chunks * blocks,), _WARPS, arguments), chunks


@functools.lru_cache(maxsize=_CACHED)
def corrected(problem: TensorProblem) -> Call:
    """A corrected gradient: grad, y, correction, out."""
    tiles, blocks, arguments = _walk(problem)
    return Call(stage_norm.corrected, (tiles * blocks,), _WARPS, arguments)


@functools.lru_cache(maxsize=_CACHED)
def output(problem: TensorProblem, residual: bool) -> Call:
    """A pending tensor's values: x, scale, shift, residual, out."""
    tiles, blocks, arguments = _walk(problem, RESIDUAL=residual)
    return Call(stage_output.output, (tiles * blocks,), _WARPS, arguments)


@functools.lru_cache(maxsize=_CACHED)
def output_gradient(problem: TensorProblem) -> tuple[Call, int]:
    """Its way back, and the chunks of the sums: grad, x, scale, shift, grad_x, partial."""
    tiles, blocks, arguments = _walk(problem)
    chunks, arguments["tiles_per_chunk"] = chunks_of(tiles, _PROGRAMS // blocks)
    return Call(stage_output.output_gradient, (chunks * blocks,), _GRADIENT_WARPS, arguments), chunks


@functools.lru_cache(maxsize=_CACHED)
def image_sums(problem: TensorProblem, gradient: bool) -> Call:
    """Means of every image, or the sums of products with ``grad``: x, scale, shift, grad, out."""
    _, blocks, arguments = _walk(problem, GRADIENT=gradient)
    warps = _GRADIENT_WARPS if gradient else _WARPS
    return Call(stage_gate.image_sums, (problem.images * blocks,), warps, arguments)


@functools.lru_cache(maxsize=_CACHED)
def gated(problem: TensorProblem) -> Call:
    """The product with a gate: x, scale, shift, gate, out."""
    tiles, blocks, arguments = _walk(problem)
    return Call(stage_gate.gated, (problem.images * tiles * blocks,), _WARPS, arguments)


@functools.lru_cache(maxsize=_CACHED)
def squeeze_gradient(problem: TensorProblem, has_gate: bool, has_mean: bool) -> tuple[Call, int]:
    """The way back through both, and the chunks: grad, gate, grad_mean, x, scale, shift, grad_x, partial."""
    tiles, blocks, arguments = _walk(problem, _SQUEEZE_TILE, HAS_GATE=has_gate, HAS_MEAN=has_mean)
    chunks, per_chunk = chunks_of(tiles, _PROGRAMS // (blocks * problem.images))
    arguments.update(chunks=chunks, tiles_per_chunk=per_chunk)
    parts = problem.images * chunks
    return Call(stage_gate.squeeze_gradient, (parts * blocks,), _WARPS, arguments), parts


@functools.lru_cache(maxsize=_CACHED)
def statistics(channels: int, count: int, eps: float, momentum: float, present: tuple[bool, bool, bool, bool]) -> Call:
    """A norm's scale and shift: sums, weight, bias, running_mean, running_var, scale, shift, mean, invstd.

    Args:
        channels: of the norm.
        count: values of a channel.
        eps: of the norm.
        momentum: of the running statistics.
        present: which of weight, bias, running_mean and running_var there are.
    """
    block = 128
    arguments = {
        "count": count,
        "channels": channels,
        "keep": 1.0 - momentum,
        "momentum": float(momentum),
        "EPS": eps,
        **dict(zip(("HAS_WEIGHT", "HAS_BIAS", "HAS_MEAN", "HAS_VAR"), present, strict=True)),
        "BLOCK": block,
    }
    return Call(stage_norm.statistics, (_ceil(channels, block),), _WARPS, arguments)


@functools.lru_cache(maxsize=_CACHED)
def correction(channels: int, count: int, weight: bool) -> Call:
    """A norm's way back: grad_affine, mean, invstd, weight, correction, grad_weight, grad_bias."""
    block = 128
    arguments = {"count": count, "channels": channels, "HAS_WEIGHT": weight, "BLOCK": block}
    return Call(stage_norm.correction, (_ceil(channels, block),), _WARPS, arguments)
