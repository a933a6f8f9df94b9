"""A depthwise problem as the kernels take it: two spatial axes, dense tensors, and what follows from its geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


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


def output_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Spatial size of the output."""
    return [
        (n + padding[2 * axis] + padding[2 * axis + 1] - dilation[axis] * (k - 1) - 1) // stride[axis] + 1
        for axis, (n, k) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True))
    ]


def shape_of(
    x: Tensor, weight: Tensor, output: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Shape:
    """The shape of a problem of one or two axes; ``padding`` is flat, (low, high) per axis."""
    axes = [
        Axis(*sizes)
        for sizes in zip(x.shape[2:], output, weight.shape[2:], stride, dilation, padding[0::2], strict=True)
    ]
    rows, cols = axes if len(axes) == 2 else (Axis(1, 1, 1, 1, 1, 0), axes[0])
    return Shape(x.shape[0], x.shape[1], weight.shape[0] // x.shape[1], rows, cols)
