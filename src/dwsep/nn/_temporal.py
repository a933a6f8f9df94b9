"""A stack of dilated separable convolutions over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import unknown_name
from dwsep.geometry import ConvGeometry, check_int
from dwsep.nn import _parts, _sequences
from dwsep.nn._separable import DepthwiseSeparableConv1d

PADDINGS = ("same", "causal")


class _TemporalLayer(nn.Module):
    """One dilated separable convolution, its dropout, and the shortcut around both."""

    def __init__(self, conv: DepthwiseSeparableConv1d, shortcut: nn.Conv1d | None, dropout: float) -> None:
        super().__init__()
        self.conv = conv
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.around(x, self.conv(x))

    def around(self, x: Tensor, out: Tensor) -> Tensor:
        """What is behind the convolution's output."""
        out = out if self.dropout is None else self.dropout(out)
        if self.shortcut is None:
            return out + x
        streams = self.conv.padding == "causal" and not torch.compiler.is_compiling()
        if streams and _sequences.is_plain_pointwise(self.shortcut):
            return out + _sequences.pointwise(self.shortcut, x)
        return out + self.shortcut(x)


class TemporalBlock(nn.Module):
    """Separable 1d convolutions whose dilation grows, each with a shortcut: a long receptive field in few layers.

    Args:
        in_channels: C of the input (N, C, L).
        out_channels: K of every layer's output; a 1x1 convolution is the first layer's shortcut where C != K.
        kernel_size: taps of the depthwise convolutions.
        dilations: of the layers, one each.
        padding: ``"causal"``, never to look ahead, or ``"same"``.
        norm: after the pointwise convolutions: ``"batch"``, ``None``, or a callable from channels to a module.
        activation: after ``norm``.
        inner_norm: between depthwise and pointwise, as ``norm``.
        inner_activation: between them after ``inner_norm``.
        dropout: probability with which an element of a layer's branch is dropped in training.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.

    Cost: K * (taps + K) macs per element and layer.

    Source: Bai et al., "An empirical evaluation of generic convolutional and recurrent networks for sequence modeling",
    arXiv:1803.01271, section 3; Kriman et al., "QuartzNet", arXiv:1910.10261, for separable layers.

    Example:
        >>> import torch
        >>> block = TemporalBlock(8, 16, 3, dilations=(1, 2, 4))
        >>> block(torch.ones(2, 8, 20)).shape
        torch.Size([2, 16, 20])
        >>> block.receptive_field
        15
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 2, 4, 8),
        *,
        padding: str = "causal",
        norm: _parts.Norm = "batch",
        activation: _parts.Activation = "relu",
        inner_norm: _parts.Norm = None,
        inner_activation: _parts.Activation = None,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        check_int("number of dilations", len(dilations), low=1)
        if padding not in PADDINGS:
            raise unknown_name("padding", padding, PADDINGS)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList()
        for index, dilation in enumerate(dilations):
            channels = out_channels if index else in_channels
            conv = DepthwiseSeparableConv1d(
                channels,
                out_channels,
                kernel_size,
                padding=padding,
                dilation=dilation,
                bias=norm is None,
                norm=norm,
                activation=activation,
                inner_norm=inner_norm,
                inner_activation=inner_activation,
                **factory,
            )
            shortcut = nn.Conv1d(channels, out_channels, 1, **factory) if channels != out_channels else None
            self.layers.append(_TemporalLayer(conv, shortcut, dropout))

    @property
    def receptive_field(self) -> int:
        """Elements of the input which an output depends on: 1 + (kernel_size - 1) * the sum of the dilations."""
        field = None
        for layer in self.layers:
            geometry: ConvGeometry = layer.conv.depthwise.geometry  # type: ignore[union-attr]
            field = geometry.receptive_field(field)
        return 1 if field is None else field[0][0]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, L) to (N, out_channels, L)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def step(self, x: Tensor, state: Sequence[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the next chunk of a stream through a causal block; see :meth:`dwsep.nn.DepthwiseSeparableConv1d.step`.

        Args:
            x: (N, C, T), any T of at least 1, or (N, C) for one time step.
            state: what the call before returned; ``None`` for zeros.

        Returns:
            The output, (N, K, T) or (N, K), and the states of the layers for the next call.

        Raises:
            ArgumentError: the block is not causal, a norm is in training, or a shape does not fit.
        """
        single = x.dim() == 2
        out = x.unsqueeze(-1) if single else x
        states = []
        for index, layer in enumerate(self.layers):
            made, new = layer.conv.step(out, None if state is None else state[index])  # type: ignore[operator, union-attr]
            states.append(new)
            out = layer.around(out, made)  # type: ignore[operator]
        return (out.squeeze(-1) if single else out), tuple(states)
