"""The inverted residual block of MobileNetV2 and V3, MNASNet and EfficientNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import ArgumentError
from dwsep.functional import IntOrInts
from dwsep.geometry import Padding, check_int
from dwsep.nn import _parts
from dwsep.nn._depthwise import DepthwiseConv2d
from dwsep.nn._squeeze_excite import SqueezeExcite
from dwsep.nn._squeeze_excite import drop_path as _drop_path


class InvertedResidual(nn.Module):
    """Expand with a 1x1 convolution, filter with a depthwise one, project with a 1x1 one; add the input where it fits.

    Computes ``expand``, ``expand_norm``, ``expand_activation`` (none of the three with expansion 1), ``depthwise``,
    ``depthwise_norm``, ``depthwise_activation``, ``squeeze_excite``, ``project``, ``project_norm``, ``drop_path``.
    :func:`dwsep.accelerate_` runs it fused.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of the output (N, K, OH, OW).
        kernel_size: taps of the depthwise convolution, one integer or (KH, KW).
        stride: step of the depthwise window, in elements.
        padding: of the depthwise convolution, as :class:`dwsep.nn.DepthwiseConv2d` takes it; ``"same_tf"`` for weights
            that come from TensorFlow.
        dilation: distance of neighbouring taps, in elements.
        expansion: hidden channels per input channel; 1 leaves the first convolution out.
        hidden_channels: their number, in place of ``expansion``; C leaves the first convolution out unless
            ``always_expand``.
        always_expand: keep the first convolution even where it does not expand.
        squeeze_channels: of the squeeze-and-excite between depthwise and projection; ``None`` for none.
        squeeze_activation: inside it.
        squeeze_gate: ``"sigmoid"``, ``"hardsigmoid"``, a module or a module class.
        norm: after each convolution: ``"batch"``, ``None``, or a callable from channels to a module.
        activation: after the first two norms: a name, a module class, or a function of a tensor.
        residual: whether to add the input; ``None`` where stride is 1 and K == C.
        drop_path: probability with which a sample's branch is dropped in training.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.
        TypeError: an argument of the wrong Python type.

    Cost: with E hidden channels C * E macs per input pixel, E * (KH * KW + K) per output pixel.

    Source: Sandler et al., "MobileNetV2", arXiv:1801.04381, section 3.3; Howard et al., "Searching for MobileNetV3",
    arXiv:1905.02244, figure 4.

    Example:
        >>> import torch
        >>> block = InvertedResidual(16, 16, 5, expansion=4, squeeze_channels=4, activation="silu")
        >>> block(torch.ones(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
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
        expansion: float = 6,
        hidden_channels: int | None = None,
        always_expand: bool = False,
        squeeze_channels: int | None = None,
        squeeze_activation: _parts.Activation = "relu",
        squeeze_gate: str | type[nn.Module] | nn.Module = "sigmoid",
        norm: _parts.Norm = "batch",
        activation: _parts.Activation = "relu6",
        residual: bool | None = None,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int("in_channels", in_channels, low=1)
        self.out_channels = check_int("out_channels", out_channels, low=1)
        if hidden_channels is None:
            if not expansion > 0:
                raise ArgumentError(f"expansion must be positive, got {expansion!r}")
            hidden_channels = max(1, round(in_channels * expansion))
        hidden = self.hidden_channels = check_int("hidden_channels", hidden_channels, low=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        bias = norm is None
        if hidden != in_channels or always_expand:
            self.expand = nn.Conv2d(in_channels, hidden, 1, bias=bias, **factory)
            self.expand_norm = _parts.make_norm("norm", norm, 2, hidden, factory)
            self.expand_activation = _parts.make_activation("activation", activation)
        self.depthwise = DepthwiseConv2d(hidden, kernel_size, stride, padding, dilation, bias=bias, **factory)
        self.depthwise_norm = _parts.make_norm("norm", norm, 2, hidden, factory)
        self.depthwise_activation = _parts.make_activation("activation", activation)
        if squeeze_channels is not None:
            self.squeeze_excite = SqueezeExcite(
                hidden, squeeze_channels, activation=squeeze_activation, gate=squeeze_gate, **factory
            )
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=bias, **factory)
        self.project_norm = _parts.make_norm("norm", norm, 2, out_channels, factory)
        fits = set(self.depthwise.stride) == {1} and in_channels == out_channels
        if residual and not fits:
            raise ArgumentError(
                f"residual needs stride 1 and in_channels == out_channels, got {self.depthwise.stride}, {in_channels} "
                f"and {out_channels}"
            )
        self.residual = fits if residual is None else bool(residual)
        self.drop_path = _drop_path("drop_path", drop_path if self.residual else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        out = x
        for module in self._modules.values():
            out = out if module is None else module(out)
        return out + x if self.residual else out

    def extra_repr(self) -> str:
        """Channels, and whether the input is added."""
        return (
            f"{self.in_channels}, {self.out_channels}, hidden_channels={self.hidden_channels}, residual={self.residual}"
        )
