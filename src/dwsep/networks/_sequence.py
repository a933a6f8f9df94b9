"""What the networks for sequences share.

A sequence of L elements is an image of height 1, (N, C, 1, L), in channels-last memory: the vectors of an embedding lie
so already, and :func:`dwsep.accelerate_` runs what it runs on images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dwsep.networks import _parts
from dwsep.networks._parts import ConvNormActivation
from dwsep.nn import DepthwiseSeparableConv2d


class DilatedBlock(nn.Module):
    """A dilated separable convolution, batch norm and activation, dropout, and the input added.

    Args:
        channels: C of input and output, (N, C, 1, L).
        kernel_size: Taps, odd.
        dilation: Distance of neighbouring taps, in elements.
        dropout: Probability of dropping an element of the branch in training.

    Cost per element: channels * (kernel_size + channels) macs.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = DepthwiseSeparableConv2d(
            channels, channels, (1, kernel_size), dilation=(1, dilation), bias=False, norm="batch", activation="relu"
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, L) to the same shape."""
        return self.dropout(self.conv(x)) + x


def dilated_blocks(channels: int, kernel_size: int, dilations: Sequence[int], dropout: float) -> list[DilatedBlock]:
    """A :class:`DilatedBlock` for each dilation, or an error where one is no positive integer."""
    return [DilatedBlock(channels, kernel_size, d, dropout) for d in _parts.check_dilations(dilations)]


def stem(in_channels: int, channels: int, kernel_size: int) -> ConvNormActivation:
    """A dense convolution over elements, batch norm and ReLU."""
    return ConvNormActivation(in_channels, channels, (1, kernel_size))


def run_masked(blocks: nn.Sequential, x: Tensor, keep: Tensor | None) -> Tensor:
    """Run blocks one by one, with zeros behind the end of every sequence before each of them.

    Args:
        blocks: What to run; each keeps the length.
        x: Shape (N, C, 1, L).
        keep: Which elements there are, shape (N, 1, 1, L), bool; None for all.

    Returns:
        Shape (N, K, 1, L), zero behind the ends.
    """
    if keep is None:
        return blocks(x)
    gate = keep.to(x.dtype)
    x = x * gate
    for block in blocks:
        x = block(x) * gate
    return x


def unless_all(keep: Tensor) -> Tensor | None:
    """None where every element is there, so that nothing need be masked; asked of the values, so not in a compiler."""
    if torch.compiler.is_compiling() or not bool(keep.all()):
        return keep
    return None


class AttentionPool(nn.Module):
    """A weighted mean over the elements; a softmax over scores, which a 1x1 convolution gives, makes the weights.

    Args:
        channels: C of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, C, 1, L), and which elements count, (N, 1, 1, L), to (N, C)."""
        score = self.score(x).float()
        if keep is not None:
            # Not -inf: a sequence without elements would come out as NaN.
            score = score.masked_fill(~keep, torch.finfo(torch.float32).min)
        return (x * score.softmax(-1).to(x.dtype)).sum((2, 3))
