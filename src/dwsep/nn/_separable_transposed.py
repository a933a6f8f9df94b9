"""Transposed depthwise separable convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.functional import IntOrInts
from dwsep.geometry import check_int
from dwsep.nn import _parts
from dwsep.nn._separable import _POINTWISE, ORDERS
from dwsep.nn._transposed import (
    DepthwiseConvTranspose1d,
    DepthwiseConvTranspose2d,
    DepthwiseConvTranspose3d,
    _DepthwiseConvTranspose,
)

_DEPTHWISE_TRANSPOSE: dict[int, type[_DepthwiseConvTranspose]] = {
    1: DepthwiseConvTranspose1d,
    2: DepthwiseConvTranspose2d,
    3: DepthwiseConvTranspose3d,
}


class _DepthwiseSeparableConvTranspose(nn.Module):
    """Transposed separable convolution over ``ndim`` axes; the thin classes below fix ``ndim``."""

    ndim: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts = 3,
        stride: IntOrInts = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: IntOrInts = 1,
        *,
        depth_multiplier: int = 1,
        bias: bool = True,
        order: str = "depthwise_first",
        norm: _parts.Norm = None,
        activation: _parts.Activation = None,
        inner_norm: _parts.Norm = None,
        inner_activation: _parts.Activation = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        self.depth_multiplier = check_int("depth_multiplier", depth_multiplier, low=1)
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        self.order = order
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        depthwise_first = order == "depthwise_first"
        if not depthwise_first and out_channels % depth_multiplier:
            raise ArgumentError(
                f"order='pointwise_first' needs out_channels to be a multiple of depth_multiplier, got {out_channels} "
                f"and {depth_multiplier}"
            )
        depthwise_in = in_channels if depthwise_first else out_channels // depth_multiplier
        depthwise = _DEPTHWISE_TRANSPOSE[self.ndim](
            depthwise_in, kernel_size, stride, padding, output_padding, dilation,
            depth_multiplier=depth_multiplier, bias=bias, **factory,
        )  # fmt: skip
        sizes = (depthwise.out_channels, out_channels) if depthwise_first else (in_channels, depthwise_in)
        pointwise = _POINTWISE[self.ndim](*sizes, 1, bias=bias, **factory)
        _parts.init_factor_(pointwise.weight, pointwise.bias, pointwise.in_channels)
        inner_channels = depthwise.out_channels if depthwise_first else depthwise_in
        self.add_module("depthwise" if depthwise_first else "pointwise", depthwise if depthwise_first else pointwise)
        self.inner_norm = _parts.make_norm("inner_norm", inner_norm, self.ndim, inner_channels, factory)
        self.inner_activation = _parts.make_activation("inner_activation", inner_activation)
        self.add_module("pointwise" if depthwise_first else "depthwise", pointwise if depthwise_first else depthwise)
        self.norm = _parts.make_norm("norm", norm, self.ndim, self.out_channels, factory)
        self.activation = _parts.make_activation("activation", activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial), or unbatched, to (N, out_channels, *out spatial)."""
        if x.dim() == self.ndim + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)  # batch norms take no unbatched input
        for module in self._modules.values():
            x = x if module is None else module(x)
        return x

    def extra_repr(self) -> str:
        """Channels, and arguments at other than their default that no submodule shows."""
        order = [f"order={self.order!r}"] if self.order != "depthwise_first" else []
        return ", ".join([str(self.in_channels), str(self.out_channels), *order])


class DepthwiseSeparableConvTranspose1d(_DepthwiseSeparableConvTranspose):
    """Transposed separable convolution over one axis; arguments as :class:`DepthwiseSeparableConvTranspose2d`.

    Example:
        >>> import torch
        >>> DepthwiseSeparableConvTranspose1d(8, 4, 4, stride=2, padding=1)(torch.ones(2, 8, 10)).shape
        torch.Size([2, 4, 20])
    """

    ndim = 1


class DepthwiseSeparableConvTranspose2d(_DepthwiseSeparableConvTranspose):
    """A transposed depthwise convolution and a pointwise one, for decoders.

    With ``order="depthwise_first"`` the layer computes ``depthwise``, ``inner_norm``, ``inner_activation``,
    ``pointwise``, ``norm``, ``activation``; ``order="pointwise_first"`` swaps the two convolutions, so that the
    pointwise one runs at the lower resolution.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of the output (N, K, OH, OW).
        kernel_size: taps of the depthwise factor, one integer or (KH, KW).
        stride: outputs per input along an axis.
        padding: outputs cut off at either end of an axis.
        output_padding: outputs added at the high end of an axis; smaller than stride or dilation.
        dilation: distance of neighbouring taps, in elements of the output.
        depth_multiplier: outputs of the depthwise factor per input channel.
        bias: whether each factor has a bias.
        order: ``"depthwise_first"`` or ``"pointwise_first"``.
        norm: after the second factor: ``"batch"``, a module, or a callable from channels to a module.
        activation: after ``norm``: a name, a module, a module class, or a function of a tensor.
        inner_norm: between the factors, as ``norm``.
        inner_activation: between the factors after ``inner_norm``, as ``activation``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Cost: C * M * KH * KW macs per input pixel and C * M * K per output pixel, or C * K per input pixel where the
    pointwise factor is first.

    Example:
        >>> import torch
        >>> layer = DepthwiseSeparableConvTranspose2d(32, 16, 4, stride=2, padding=1, norm="batch", activation="relu")
        >>> layer(torch.ones(1, 32, 8, 8)).shape
        torch.Size([1, 16, 16, 16])
    """

    ndim = 2


class DepthwiseSeparableConvTranspose3d(_DepthwiseSeparableConvTranspose):
    """Transposed separable convolution over three axes; arguments as :class:`DepthwiseSeparableConvTranspose2d`.

    Example:
        >>> import torch
        >>> DepthwiseSeparableConvTranspose3d(4, 8, 2, stride=2)(torch.ones(1, 4, 2, 4, 4)).shape
        torch.Size([1, 8, 4, 8, 8])
    """

    ndim = 3
