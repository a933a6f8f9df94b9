"""The block of Xception."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.geometry import ConvGeometry, check_int
from dwsep.nn import _parts
from dwsep.nn._separable import DepthwiseSeparableConv2d

DOWNSAMPLINGS = ("pool", "stride")
PADDINGS = ("same", "same_tf")


class _MaxPoolSame(nn.Module):
    """Max pooling over 3x3 windows, padded as TensorFlow does: by as much as the size asks for, with -inf."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.geometry = ConvGeometry.make(2, 3, stride, "same_tf")

    def forward(self, x: Tensor) -> Tensor:
        pads = [side for pair in reversed(self.geometry.pads(x.shape[-2:])) for side in pair]
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), 3, self.geometry.stride)


class XceptionBlock(nn.Module):
    """Separable 3x3 convolutions with batch norm in a row, downsampled or not, and a shortcut around them.

    Computes ``activation`` (if it starts with one), ``layers``, ``pool`` (where it downsamples by pooling), and adds
    ``shortcut`` and ``shortcut_norm`` of the input, or the input itself where it fits.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of the output.
        stride: by which the block downsamples.
        repeats: separable convolutions in a row.
        dilation: distance of neighbouring taps, in elements.
        kernel_size: taps of the depthwise convolutions.
        start_with_activation: whether an activation comes before the first convolution.
        grow_first: whether the first convolution goes from C to K channels, rather than the last.
        inner_channels: outputs of each convolution but the last, in place of ``grow_first``.
        downsample: ``"pool"``, a 3x3 max pooling at the end, or ``"stride"``, of the last convolution.
        padding: ``"same"``, or ``"same_tf"`` for weights that come from TensorFlow.
        norm: after each convolution: ``"batch"``, ``None``, or a callable from channels to a module.
        inner_norm: between depthwise and pointwise, as ``norm``.
        inner_activation: between them after ``inner_norm``.
        activation: between the convolutions.
        residual: ``"auto"`` for a shortcut with a convolution where the input does not fit, ``False`` for none.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.

    Cost: about repeats * C * (KH * KW + K) macs per pixel, and C * K per output pixel for the shortcut.

    Source: Chollet, "Xception", arXiv:1610.02357, figure 5; Chen et al., arXiv:1802.02611, figure 4, for ``"stride"``.

    Example:
        >>> import torch
        >>> XceptionBlock(16, 32, stride=2)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        repeats: int = 2,
        dilation: int = 1,
        kernel_size: int = 3,
        start_with_activation: bool = True,
        grow_first: bool = True,
        inner_channels: Sequence[int] | None = None,
        downsample: str = "pool",
        padding: str = "same",
        norm: _parts.Norm = "batch",
        inner_norm: _parts.Norm = None,
        inner_activation: _parts.Activation = None,
        activation: _parts.Activation = "relu",
        residual: bool | str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("in_channels", in_channels, low=1)
        check_int("out_channels", out_channels, low=1)
        check_int("repeats", repeats, low=1)
        check_int("stride", stride, low=1)
        if downsample not in DOWNSAMPLINGS:
            raise unknown_name("downsample", downsample, DOWNSAMPLINGS)
        if padding not in PADDINGS:
            raise unknown_name("padding", padding, PADDINGS)
        if residual not in ("auto", False):
            raise ArgumentError(f"residual must be 'auto' or False, got {residual!r}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if inner_channels is None:
            inner_channels = [out_channels if grow_first else in_channels] * (repeats - 1)
        elif len(inner_channels) != repeats - 1:
            raise ArgumentError(f"inner_channels must have repeats - 1 = {repeats - 1} entries, got {inner_channels!r}")
        widths = [in_channels, *inner_channels, out_channels]
        self.activation = _parts.make_activation("activation", activation) if start_with_activation else None
        self.layers = nn.Sequential()
        for index in range(repeats):
            last = index == repeats - 1
            self.layers.append(
                DepthwiseSeparableConv2d(
                    widths[index],
                    widths[index + 1],
                    kernel_size,
                    stride if last and downsample == "stride" else 1,
                    padding,
                    dilation,
                    bias=norm is None,
                    norm=norm,
                    inner_norm=inner_norm,
                    inner_activation=inner_activation,
                    activation=None if last else activation,
                    **factory,
                )
            )
        self.pool = None
        if stride > 1 and downsample == "pool":
            self.pool = nn.MaxPool2d(3, stride, 1) if padding == "same" else _MaxPoolSame(stride)
        self.residual = residual == "auto"
        self.shortcut = self.shortcut_norm = None
        if self.residual and (in_channels != out_channels or stride != 1):
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=norm is None, **factory)
            self.shortcut_norm = _parts.make_norm("norm", norm, 2, out_channels, factory)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        out = self.layers(x if self.activation is None else self.activation(x))
        if self.pool is not None:
            out = self.pool(out)
        if not self.residual:
            return out
        if self.shortcut is not None:
            x = self.shortcut(x)
            x = x if self.shortcut_norm is None else self.shortcut_norm(x)
        return out + x
