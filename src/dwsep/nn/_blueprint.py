"""Blueprint separable convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError, unknown_name
from dwsep.functional import IntOrInts
from dwsep.geometry import Padding, check_int
from dwsep.nn import _parts
from dwsep.nn._depthwise import DepthwiseConv2d

VARIANTS = ("U", "S")


class BlueprintSeparableConv2d(nn.Module):
    """A pointwise convolution, then a depthwise one: every filter is one blueprint kernel, scaled for each input.

    Variant ``"U"`` (unconstrained) computes ``pointwise``, ``inner_norm``, ``depthwise``, ``norm``, ``activation``;
    variant ``"S"`` (subspace) has a pointwise convolution to fewer channels before, ``reduce`` and ``reduce_norm``,
    whose rows :meth:`orthogonality_loss` keeps orthonormal. Only the depthwise factor has a bias.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of the output (N, K, OH, OW).
        kernel_size: taps, one integer or (KH, KW).
        stride: step of the window, in elements.
        padding: as :class:`dwsep.nn.DepthwiseSeparableConv2d` takes it.
        dilation: distance of neighbouring taps, in elements.
        variant: ``"U"`` or ``"S"``.
        subspace: for ``"S"``, the share of C which the first pointwise convolution keeps, above 0 and at most 1.
        min_subspace_channels: for ``"S"``, the fewest channels it keeps, as far as there are as many.
        bias: whether the depthwise factor has a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        norm: after the depthwise factor: ``"batch"``, a module, or a callable from channels to a module.
        activation: after ``norm``: a name, a module, a module class, or a function of a tensor.
        inner_norm: after each pointwise factor: ``"batch"`` or a callable from channels to a module.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Cost: C * K macs per input pixel (U), or (C + K) * subspace * C (S), and K * KH * KW per output pixel.

    Source: Haase and Amthor, "Rethinking depthwise separable convolutions", arXiv:2003.13549, sections 3 and 4.

    Example:
        >>> import torch
        >>> layer = BlueprintSeparableConv2d(32, 64, stride=2, variant="S", inner_norm="batch")
        >>> layer(torch.ones(1, 32, 8, 8)).shape
        torch.Size([1, 64, 4, 4])
        >>> layer.subspace_channels
        8
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts = 3,
        stride: IntOrInts = 1,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        *,
        variant: str = "U",
        subspace: float = 0.25,
        min_subspace_channels: int = 4,
        bias: bool = True,
        padding_mode: str = "zeros",
        norm: _parts.Norm = None,
        activation: _parts.Activation = None,
        inner_norm: _parts.Norm = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        self.variant = variant
        if not 0 < subspace <= 1:
            raise ArgumentError(f"subspace must be above 0 and at most 1, got {subspace!r}")
        least = check_int("min_subspace_channels", min_subspace_channels, low=1)
        self.subspace_channels = min(in_channels, max(least, math.ceil(subspace * in_channels)))
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        channels = in_channels
        if variant == "S":
            channels = self.subspace_channels
            self.reduce = nn.Conv2d(in_channels, channels, 1, bias=False, **factory)
            self.reduce_norm = _parts.make_norm("inner_norm", inner_norm, 2, channels, factory)
            if isinstance(inner_norm, nn.Module):
                raise ArgumentError("inner_norm must be a name or a callable for variant 'S', which needs two norms")
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False, **factory)
        self.inner_norm = _parts.make_norm("inner_norm", inner_norm, 2, out_channels, factory)
        self.depthwise = DepthwiseConv2d(
            out_channels, kernel_size, stride, padding, dilation, bias=bias, padding_mode=padding_mode, **factory
        )
        self.norm = _parts.make_norm("norm", norm, 2, out_channels, factory)
        self.activation = _parts.make_activation("activation", activation)
        for conv in (self.pointwise, *([self.reduce] if variant == "S" else [])):
            _parts.init_factor_(conv.weight, None, conv.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        for module in self._modules.values():
            x = x if module is None else module(x)
        return x

    def orthogonality_loss(self) -> Tensor:
        """How far the rows W of the subspace convolution are from orthonormal: ||W W^T - I||, Frobenius.

        Add it to the training loss, times 0.1 as in the paper; see :func:`dwsep.nn.orthogonality_loss` for a network.

        Returns:
            A scalar; 0 for variant ``"U"``, which has no such convolution.
        """
        if self.variant == "U":
            return self.pointwise.weight.new_zeros(())
        rows = self.reduce.weight.flatten(1)
        return torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype))

    def extra_repr(self) -> str:
        """Channels and variant."""
        return f"{self.in_channels}, {self.out_channels}, variant={self.variant!r}"


def orthogonality_loss(model: nn.Module) -> Tensor:
    """The sum of the orthogonality losses of all subspace (``"S"``) blueprint convolutions of a model.

    Args:
        model: any module.

    Returns:
        A scalar, 0 where there is none.

    Source: Haase and Amthor, arXiv:2003.13549, section 4.2.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(BlueprintSeparableConv2d(8, 8, variant="S"))
        >>> loss = model(torch.ones(1, 8, 4, 4)).mean() + 0.1 * orthogonality_loss(model)
    """
    losses = [
        module.orthogonality_loss()
        for module in model.modules()
        if isinstance(module, BlueprintSeparableConv2d) and module.variant == "S"
    ]
    return torch.stack(losses).sum() if losses else torch.zeros(())
