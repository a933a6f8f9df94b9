"""Lightweight convolution: depthwise, with few softmax-normalised kernels that channels share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep import functional
from dwsep.errors import ArgumentError
from dwsep.functional import IntOrInts
from dwsep.geometry import ConvGeometry, Padding, check_int


class LightweightConv1d(nn.Module):
    """Every head of neighbouring channels shares one kernel, whose taps a softmax makes positive with sum 1.

    Args:
        in_channels: C of the input (N, C, L), and of the output.
        kernel_size: taps.
        heads: kernels, H; must divide C, channel c uses kernel c // (C / H).
        padding: ``"same"``, ``"causal"`` and so on, as :class:`dwsep.nn.DepthwiseConv1d` takes it.
        dilation: distance of neighbouring taps, in elements.
        softmax: whether the kernels are normalised; without, they are used as they are.
        weight_dropout: probability with which a tap is dropped in training, after the softmax; the others grow by
            1 / (1 - weight_dropout).
        bias: whether to add a bias per channel.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Attributes:
        weight: (H, 1, taps), before the softmax; drawn as Glorot and Bengio do.
        bias: (C,) or ``None``, zero at first.

    Cost: C * taps macs per element, and H * taps exponentials per call.

    Source: Wu et al., "Pay less attention with lightweight and dynamic convolutions", arXiv:1901.10430, section 3.

    Example:
        >>> import torch
        >>> layer = LightweightConv1d(16, 3, heads=4, padding="causal")
        >>> layer(torch.ones(2, 16, 10)).shape
        torch.Size([2, 16, 10])
        >>> sum(p.numel() for p in layer.parameters())
        12
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: IntOrInts,
        heads: int = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        *,
        softmax: bool = True,
        weight_dropout: float = 0.0,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = self.out_channels = check_int("in_channels", in_channels, low=1)
        self.heads = check_int("heads", heads, low=1)
        if in_channels % heads:
            raise ArgumentError(f"heads must divide in_channels, got {heads} and {in_channels}")
        if not 0 <= weight_dropout < 1:
            raise ArgumentError(f"weight_dropout must be at least 0 and below 1, got {weight_dropout!r}")
        self.geometry = ConvGeometry.make(1, kernel_size, 1, padding, dilation)
        self.padding, self.softmax, self.weight_dropout = padding, softmax, weight_dropout
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(heads, 1, *self.geometry.kernel_size, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(in_channels, **factory))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels anew, and set the bias to zero."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def kernels(self) -> Tensor:
        """The depthwise kernels in use, (C, 1, taps): normalised, dropped from in training, one per channel."""
        weight = self.weight
        if self.softmax:
            weight = weight.float().softmax(-1).to(weight.dtype)
        weight = F.dropout(weight, self.weight_dropout, self.training)
        return weight.repeat_interleave(self.in_channels // self.heads, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L), or unbatched (C, L), to (N, C, out L)."""
        channels = x.shape[-2] if x.dim() >= 2 else None
        if channels != self.in_channels:
            raise ArgumentError(
                f"x must be (N, {self.in_channels}, L) or ({self.in_channels}, L), got {tuple(x.shape)}"
            )
        return functional.depthwise_conv(x, self.kernels(), self.bias, self.geometry, "none", "auto")

    def extra_repr(self) -> str:
        """Arguments as the constructor takes them."""
        g = self.geometry
        parts = [str(self.in_channels), f"kernel_size={g.kernel_size[0]}", f"heads={self.heads}"]
        parts += [f"padding={self.padding!r}"] if self.padding != "same" else []
        parts += [f"dilation={g.dilation[0]}"] if g.dilation[0] != 1 else []
        parts += ["softmax=False"] if not self.softmax else []
        parts += [f"weight_dropout={self.weight_dropout}"] if self.weight_dropout else []
        return ", ".join(parts)
