"""A text classifier of dilated separable convolutions, and its dense twin."""

from __future__ import annotations

from collections.abc import Sequence

from dwsep.networks import _parts, _sequence
from dwsep.networks._parts import divisible_channels
from dwsep.networks._text import TextClassifier

_CHANNELS = 128


class TextSeparable(TextClassifier):
    """Text classifier: token embedding, dilated separable convolutions with shortcuts, attention pooling.

    Token 0 is padding, token 1 by convention whatever the vocabulary does not know. What lies behind a text's end
    changes nothing in evaluation; in training, batch norms see it.

    Args:
        num_classes: Number of logits.
        vocabulary_size: Number of tokens, padding and unknown among them.
        width_multiplier: Scales the 128 channels, rounded to multiples of 8.
        kernel_size: Taps of the convolutions, odd.
        dilations: Of the blocks, one each.
        dropout: Probability of dropping an element of embedding, blocks and pooled features.
        dense: Whether every separable convolution is a dense one instead.

    Raises:
        ValueError: If an option is out of range.

    Cost at width 1 and kernel 5: per token and block 128 * (5 + 128) = 17,024 macs; dense 81,920.

    Source: Kaiser et al., "Depthwise separable convolutions for neural machine translation", arXiv 1706.03059, for
    separable convolutions over text; Yu and Koltun, arXiv 1511.07122, for the dilations.

    Example:
        >>> import torch
        >>> network = TextSeparable(2, vocabulary_size=100).eval()
        >>> network(torch.tensor([[5, 7, 9, 0, 0]])).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        vocabulary_size: int,
        width_multiplier: float = 1.0,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1, 2, 4),
        dropout: float = 0.3,
        dense: bool = False,
    ) -> None:
        _parts.check_counts(kernel_size=kernel_size)
        _parts.check_dropout(dropout)
        channels = divisible_channels(_CHANNELS, width_multiplier)
        blocks = _sequence.dilated_blocks(channels, kernel_size, dilations, dropout)
        super().__init__(num_classes, vocabulary_size, channels, blocks, dropout, dense)
