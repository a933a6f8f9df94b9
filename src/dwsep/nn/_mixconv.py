"""Depthwise convolution with several kernel sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError
from dwsep.functional import IntOrInts
from dwsep.geometry import check_int
from dwsep.nn._depthwise import DepthwiseConv2d

PADDINGS = ("same", "same_tf")


class MixConv2d(nn.Module):
    """Depthwise convolution whose channels are split into groups, each with kernels of its own size.

    Args:
        in_channels: C of the input (N, C, H, W), and of the output.
        kernel_sizes: taps of each group; the first group takes the channels that are left over.
        stride: step of the window, in elements.
        padding: ``"same"`` or ``"same_tf"``.
        dilation: distance of neighbouring taps, in elements.
        bias: whether to add a bias per channel.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.

    Cost: per output pixel the sum over the groups of channels * taps; a copy of the output.

    Source: Tan and Le, "MixConv: mixed depthwise convolutional kernels", arXiv:1907.09595, section 3.

    Example:
        >>> import torch
        >>> layer = MixConv2d(10, (3, 5, 7), stride=2)
        >>> layer(torch.ones(1, 10, 8, 8)).shape, layer.splits
        (torch.Size([1, 10, 4, 4]), (4, 3, 3))
    """

    def __init__(
        self,
        in_channels: int,
        kernel_sizes: Sequence[int],
        stride: IntOrInts = 1,
        padding: str = "same",
        dilation: IntOrInts = 1,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = self.out_channels = check_int("in_channels", in_channels, low=1)
        groups = len(kernel_sizes)
        if not 1 <= groups <= in_channels:
            raise ArgumentError(f"kernel_sizes must be between 1 and in_channels = {in_channels} sizes, got {groups}")
        if padding not in PADDINGS:
            raise ArgumentError(f"padding must be 'same' or 'same_tf', for sizes that agree, got {padding!r}")
        each, rest = divmod(in_channels, groups)
        self.splits = (each + rest, *(each,) * (groups - 1))
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.branches = nn.ModuleList(
            DepthwiseConv2d(channels, size, stride, padding, dilation, bias=bias, **factory)
            for channels, size in zip(self.splits, kernel_sizes, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, OH, OW)."""
        parts = torch.split(x, list(self.splits), 1)
        return torch.cat([branch(parts[index]) for index, branch in enumerate(self.branches)], 1)
