"""A depthwise problem as the kernels take it: two spatial axes, dense tensors, and what follows from its geometry."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One spatial axis: sizes, kernel, stride, dilation and low padding, in elements."""

    size: int
    output: int
    kernel: int
    stride: int
    dilation: int
    low: int

    @property
    def divisor(self) -> int:
        """Greatest common divisor of stride and dilation."""
        return math.gcd(self.stride, self.dilation)

    @property
    def inverse(self) -> int:
        """What undoes the dilation modulo the stride, both by their divisor: which tap reaches a class first."""
        stride, dilation = self.stride // self.divisor, self.dilation // self.divisor
        return pow(dilation, -1, stride) if stride > 1 else 0

    @property
    def spacing(self) -> int:
        """Distance of outputs that read the same inputs."""
        return self.dilation // self.divisor


@dataclass(frozen=True)
class Shape:
    """A problem over two axes; one with a single axis has a first of size 1."""

    batch: int
    channels: int
    multiplier: int
    rows: Axis
    cols: Axis

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.channels * self.multiplier

    @property
    def taps(self) -> int:
        """Weights of one channel's kernel."""
        return self.rows.kernel * self.cols.kernel

    @property
    def wide(self) -> bool:
        """Whether offsets into the tensors need 64 bits."""
        pixels = max(self.rows.size * self.cols.size, self.rows.output * self.cols.output)
        # The margin covers offsets of masked elements, which lie beyond the tensor.
        return self.batch * self.out_channels * pixels >= 2**31 - 2**26


@functools.lru_cache(maxsize=4096)
def shape_of(
    size: tuple[int, ...],
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Shape, tuple[int, ...]]:
    """The shape of a problem of one or two axes, and the spatial size of its output.

    Args:
        size: of x, (N, C, *spatial).
        weight: its size, (C * M, 1, *kernel).
        stride: per axis.
        padding: flat, (low, high) per axis.
        dilation: per axis.
    """
    axes = []
    for axis, (n, k, s, d) in enumerate(zip(size[2:], weight[2:], stride, dilation, strict=True)):
        low, high = padding[2 * axis : 2 * axis + 2]
        axes.append(Axis(n, (n + low + high - d * (k - 1) - 1) // s + 1, k, s, d, low))
    rows, cols = axes if len(axes) == 2 else (Axis(1, 1, 1, 1, 1, 0), axes[0])
    return Shape(size[0], size[1], weight[0] // size[1], rows, cols), tuple(axis.output for axis in axes)
