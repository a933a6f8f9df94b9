"""Atrous spatial pyramid pooling with separable convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwsep.errors import ArgumentError
from dwsep.geometry import check_int
from dwsep.nn import _parts
from dwsep.nn._separable import DepthwiseSeparableConv2d


class SeparableASPP(nn.Module):
    """The same features at several dilations side by side, with their mean over the image, mixed by a 1x1 convolution.

    The branches are a 1x1 convolution (``pointwise``), a separable convolution per dilation (``branches``), and the
    mean over the image through a 1x1 convolution (``pool``), spread over it; ``project`` mixes them.

    Args:
        in_channels: C of the input (N, C, H, W).
        out_channels: K of every branch and of the output.
        dilations: of the separable convolutions.
        kernel_size: their taps.
        image_pooling: whether there is a branch with the mean over the image.
        dropout: probability with which an element of the output is dropped in training.
        norm: after each convolution: ``"batch"``, ``None``, or a callable from channels to a module.
        activation: after each norm: a name, a module class, or a function of a tensor.
        inner_norm: between depthwise and pointwise, as ``norm``.
        inner_activation: between them after ``inner_norm``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.

    Cost: C * (taps + K) macs per pixel and dilation, C * K for the 1x1 branch, branches * K * K for the mix.

    Source: Chen et al., "Encoder-decoder with atrous separable convolution", arXiv:1802.02611, section 3.

    Example:
        >>> import torch
        >>> SeparableASPP(32, 16, (6, 12, 18)).eval()(torch.ones(1, 32, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int] = (12, 24, 36),
        *,
        kernel_size: int = 3,
        image_pooling: bool = True,
        dropout: float = 0.5,
        norm: _parts.Norm = "batch",
        activation: _parts.Activation = "relu",
        inner_norm: _parts.Norm = None,
        inner_activation: _parts.Activation = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("in_channels", in_channels, low=1)
        check_int("out_channels", out_channels, low=1)
        if not isinstance(dilations, Sequence) or isinstance(dilations, str):
            raise TypeError(f"dilations must be integers, got {dilations!r}")
        if not 0 <= dropout < 1:
            raise ArgumentError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def conv(channels: int) -> OrderedDict[str, nn.Module]:
            parts: dict[str, nn.Module | None] = {
                "conv": nn.Conv2d(channels, out_channels, 1, bias=norm is None, **factory),
                "norm": _parts.make_norm("norm", norm, 2, out_channels, factory),
                "activation": _parts.make_activation("activation", activation),
            }
            return OrderedDict((name, part) for name, part in parts.items() if part is not None)

        self.pointwise = nn.Sequential(conv(in_channels))
        self.branches = nn.ModuleList(
            DepthwiseSeparableConv2d(
                in_channels,
                out_channels,
                kernel_size,
                dilation=dilation,
                bias=norm is None,
                norm=norm,
                activation=activation,
                inner_norm=inner_norm,
                inner_activation=inner_activation,
                **factory,
            )
            for dilation in dilations
        )
        self.pool = nn.Sequential(conv(in_channels)) if image_pooling else None
        count = 1 + len(self.branches) + bool(image_pooling)
        self.project = nn.Sequential(conv(count * out_channels))
        if dropout:
            self.project.append(nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        parts = [self.pointwise(x), *(branch(x) for branch in self.branches)]
        if self.pool is not None:
            mean = self.pool(F.adaptive_avg_pool2d(x, 1))
            # One pixel: interpolation would only copy it.
            parts.append(mean.expand_as(parts[0]))
        return self.project(torch.cat(parts, 1))
