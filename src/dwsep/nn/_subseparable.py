"""Between dense and separable: convolutions over groups of channels, and separable ones within groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.functional import IntOrInts
from dwsep.geometry import ConvGeometry, Padding, check_int
from dwsep.nn import _parts
from dwsep.nn._separable import _DEPTHWISE, _POINTWISE

VARIANTS = ("subseparable", "superseparable")


class _SubseparableConv(nn.Module):
    """Subseparable convolution over ``ndim`` axes; the thin classes below fix ``ndim``."""

    ndim: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts = 3,
        stride: IntOrInts = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        *,
        groups: int,
        variant: str = "subseparable",
        bias: bool = True,
        norm: _parts.Norm = None,
        activation: _parts.Activation = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        self.groups = check_int("groups", groups, low=1)
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ArgumentError(f"groups must divide {name}, got {groups} and {channels}")
        self.variant = variant
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        conv = _POINTWISE[self.ndim]
        self.spatial: nn.Module
        if variant == "superseparable":
            self.spatial = _DEPTHWISE[self.ndim](
                in_channels, kernel_size, stride, padding, dilation, bias=bias, **factory
            )
            self.pointwise = conv(in_channels, out_channels, 1, groups=groups, bias=bias, **factory)
        else:
            geometry = ConvGeometry.make(self.ndim, kernel_size, stride, padding, dilation)
            pads = geometry.padding
            if pads is None or any(low != high or low < 0 for low, high in pads):
                raise ArgumentError(
                    f"padding must be the same at both ends of an axis for variant 'subseparable', got {padding!r} "
                    f"with kernel_size {geometry.kernel_size}"
                )
            sides = tuple(low for low, _ in pads)
            sizes: Any = (geometry.kernel_size, geometry.stride, sides, geometry.dilation)
            self.spatial = conv(in_channels, out_channels, *sizes, groups=groups, bias=bias, **factory)
            self.pointwise = conv(out_channels, out_channels, 1, bias=bias, **factory)
        self.norm = _parts.make_norm("norm", norm, self.ndim, out_channels, factory)
        self.activation = _parts.make_activation("activation", activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) to (N, out_channels, *out spatial)."""
        for module in self._modules.values():
            x = x if module is None else module(x)
        return x

    def extra_repr(self) -> str:
        """Channels, groups and variant."""
        return f"{self.in_channels}, {self.out_channels}, groups={self.groups}, variant={self.variant!r}"


class SubseparableConv1d(_SubseparableConv):
    """A convolution within groups of channels, then a mix: between a dense and a depthwise separable one.

    ``"subseparable"`` is a dense convolution within each of ``groups`` groups, then a pointwise one over all channels:
    dense with 1 group, separable with as many groups as channels. ``"superseparable"`` is a separable convolution
    within each group, which saves on the pointwise factor; layers with different numbers of groups in turn mix the
    channels.

    Args:
        in_channels: C of the input (N, C, L).
        out_channels: K of the output (N, K, OL).
        kernel_size: taps of the spatial factor.
        stride: step of the window, in elements.
        padding: as :class:`dwsep.nn.DepthwiseSeparableConv1d` takes it; symmetric for ``"subseparable"``.
        dilation: distance of neighbouring taps, in elements.
        groups: G; must divide C and K.
        variant: ``"subseparable"`` or ``"superseparable"``.
        bias: whether each factor has a bias.
        norm: after the pointwise factor: ``"batch"``, a module, or a callable from channels to a module.
        activation: after ``norm``: a name, a module, a module class, or a function of a tensor.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Cost: taps * C * K / G + K * K macs per output element (sub), taps * C + C * K / G (super).

    Source: Kaiser, Gomez and Chollet, "Depthwise separable convolutions for neural machine translation",
    arXiv:1706.03059, section 2.

    Example:
        >>> import torch
        >>> SubseparableConv1d(8, 16, 5, groups=4)(torch.ones(2, 8, 10)).shape
        torch.Size([2, 16, 10])
        >>> sum(p.numel() for p in SubseparableConv1d(8, 16, 5, groups=4, variant="superseparable").parameters())
        96
    """

    ndim = 1


class SubseparableConv2d(_SubseparableConv):
    """Subseparable convolution over two axes; arguments as :class:`SubseparableConv1d`.

    Example:
        >>> import torch
        >>> SubseparableConv2d(8, 16, groups=4, stride=2)(torch.ones(2, 8, 10, 10)).shape
        torch.Size([2, 16, 5, 5])
    """

    ndim = 2
