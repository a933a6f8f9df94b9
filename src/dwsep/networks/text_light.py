"""A text classifier of lightweight convolutions, and its dense twin."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.errors import ArgumentError
from dwsep.networks import _parts
from dwsep.networks._parts import ConvNormActivation, divisible_channels
from dwsep.networks._text import TextClassifier
from dwsep.nn import LightweightConv1d

_CHANNELS = 128


class _LightBlock(nn.Module):
    """Gated input, lightweight convolution, output projection, the input added; then two 1x1 convolutions likewise."""

    def __init__(self, channels: int, kernel_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        # No bias, so that the zeros behind a text's end stay zeros, which the taps then carry into nothing.
        self.input = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.conv = LightweightConv1d(channels, kernel_size, heads, weight_dropout=dropout / 2)
        self.output = ConvNormActivation(channels, channels, 1, activation=None)
        self.widen = ConvNormActivation(channels, 2 * channels, 1)
        self.narrow = ConvNormActivation(2 * channels, channels, 1, activation=None)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, L) to the same shape."""
        mixed = self.conv(F.glu(self.input(x), 1).squeeze(2)).unsqueeze(2)
        x = x + self.dropout(self.output(mixed))
        return x + self.dropout(self.narrow(self.widen(x)))


class TextLight(TextClassifier):
    """Text classifier: token embedding, lightweight convolutions with gates and shortcuts, attention pooling.

    Token 0 is padding, token 1 by convention whatever the vocabulary does not know. What lies behind a text's end
    changes nothing in evaluation; in training, batch norms see it.

    Args:
        num_classes: Number of logits.
        vocabulary_size: Number of tokens, padding and unknown among them.
        width_multiplier: Scales the 128 channels, rounded to multiples of 8.
        kernel_sizes: Taps of the blocks' convolutions, odd, one each.
        heads: Kernels of each lightweight convolution; must divide the channels.
        dropout: Probability of dropping an element of embedding, blocks and pooled features, and half of it a tap.
        dense: Whether every lightweight convolution is a dense one instead.

    Raises:
        ValueError: If an option is out of range.

    Cost at width 1: per token and block with k taps 128 * (7 * 128 + k) = 114,688 + 128 k macs; dense 128 * 128 * k in
    place of 128 k.

    Source: Wu et al., "Pay less attention with lightweight and dynamic convolutions", arXiv 1901.10430, section 3, with
    batch norms in place of layer norms.

    Example:
        >>> import torch
        >>> network = TextLight(2, vocabulary_size=100).eval()
        >>> network(torch.tensor([[5, 7, 9, 0, 0]])).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        vocabulary_size: int,
        width_multiplier: float = 1.0,
        kernel_sizes: Sequence[int] = (3, 7, 15),
        heads: int = 8,
        dropout: float = 0.3,
        dense: bool = False,
    ) -> None:
        _parts.check_counts(heads=heads)
        _parts.check_dropout(dropout)
        if isinstance(kernel_sizes, str) or not kernel_sizes or any(size % 2 != 1 for size in kernel_sizes):
            raise ArgumentError(f"kernel_sizes must be odd numbers, at least one, got {kernel_sizes!r}")
        channels = divisible_channels(_CHANNELS, width_multiplier)
        blocks = [_LightBlock(channels, size, heads, dropout) for size in kernel_sizes]
        super().__init__(num_classes, vocabulary_size, channels, blocks, dropout, dense)
