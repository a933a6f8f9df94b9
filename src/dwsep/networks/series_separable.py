"""A classifier of multivariate series of dilated separable convolutions, and its dense twin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError
from dwsep.networks import _parts, _sequence
from dwsep.networks._dense import dense_twin_
from dwsep.networks._parts import divisible_channels

_CHANNELS = 64
_STEM_TAPS = 7


class SeriesSeparable(nn.Module):
    """Series classifier: a dense convolution over all channels, a dilated residual stack, mean and maximum over time.

    A time step whose values are all NaN does not exist: series of different lengths are padded with NaN at the end. A
    single NaN is a missing value, which counts as the mean, zero. What does not exist changes nothing in evaluation; in
    training, batch norms see it.

    Args:
        num_classes: Number of logits.
        in_channels: Values per time step.
        width_multiplier: Scales the 64 channels, rounded to multiples of 8.
        kernel_size: Taps of the separable convolutions, odd.
        dilations: Of the blocks, one each; with kernel size k, an output depends on 7 + (k - 1) * sum(dilations) steps.
        dropout: Probability of dropping an element of the blocks and of the pooled features.
        dense: Whether every separable convolution is a dense one instead.

    Raises:
        ValueError: If an option is out of range.

    Cost at width 1 and kernel 9: per step and block 64 * (9 + 64) = 4,672 macs; dense 36,864.

    Source: Bai et al., arXiv 1803.01271, for the dilated stack; Wang et al., "Time series classification from scratch",
    arXiv 1611.06455, for convolutions with batch norm and pooling over time.

    Example:
        >>> import torch
        >>> network = SeriesSeparable(4, in_channels=2).eval()
        >>> network(torch.zeros(3, 2, 50)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width_multiplier: float = 1.0,
        kernel_size: int = 9,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        dropout: float = 0.1,
        dense: bool = False,
    ) -> None:
        super().__init__()
        _parts.check_counts(num_classes=num_classes, in_channels=in_channels, kernel_size=kernel_size)
        _parts.check_dropout(dropout)
        _parts.check_switches(dense=dense)
        self.in_channels = in_channels
        channels = divisible_channels(_CHANNELS, width_multiplier)
        blocks = _sequence.dilated_blocks(channels, kernel_size, dilations, dropout)
        self.body = nn.Sequential(_sequence.stem(in_channels, channels, _STEM_TAPS), *blocks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * channels, num_classes)
        _parts.init_classifier_(self.classifier)
        if dense:
            dense_twin_(self.body)

    def forward(self, x: Tensor) -> Tensor:
        """Classify series.

        Args:
            x: Shape (N, in_channels, L), floating point, padded with NaN.

        Returns:
            Logits of shape (N, num_classes).

        Raises:
            ArgumentError: If x has another shape.
        """
        if x.dim() != 3 or x.shape[1] != self.in_channels:
            raise ArgumentError(f"x must have shape (N, {self.in_channels}, L), got {tuple(x.shape)}")
        missing = x.isnan()
        keep = _sequence.unless_all(~missing.all(1)[:, None, None])
        x = x.masked_fill(missing, 0).unsqueeze(2).contiguous(memory_format=torch.channels_last)
        x = _sequence.run_masked(self.body, x, keep)
        if keep is None:
            mean, highest = x.mean((2, 3)), x.amax((2, 3))
        else:
            mean = x.sum((2, 3)) / keep.sum((2, 3)).clamp(min=1).to(x.dtype)
            # The body ends in a rectifier and sums of those, so that the zeros behind the end are never the highest.
            highest = x.amax((2, 3))
        return self.classifier(self.dropout(torch.cat([mean, highest], 1)))
