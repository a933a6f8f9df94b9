"""The block of ConvNeXt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dwsep.functional import IntOrInts
from dwsep.geometry import Padding, check_int
from dwsep.nn import _parts
from dwsep.nn._depthwise import DepthwiseConv2d
from dwsep.nn._squeeze_excite import drop_path as _drop_path


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution with a large kernel, layer norm over channels, two linear layers, and a shortcut.

    Computes ``depthwise``, ``norm``, ``expand``, ``activation``, ``project``, times ``layer_scale``, ``drop_path``, and
    adds the input.

    Args:
        channels: C of the input (N, C, H, W), and of the output.
        kernel_size: taps of the depthwise convolution.
        expansion: hidden features per channel.
        padding: of the depthwise convolution.
        dilation: distance of neighbouring taps, in elements.
        activation: between the linear layers: a name, a module, a module class, or a function of a tensor.
        layer_scale: what the branch's factors per channel start with; ``None`` for no factors.
        drop_path: probability with which a sample's branch is dropped in training.
        eps: of the layer norm.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: (a ``ValueError`` and a ``RuntimeError``) an argument out of its range or an unknown name.

    Cost: C * (KH * KW + 2 * expansion * C) macs per pixel.

    Source: Liu et al., "A ConvNet for the 2020s", arXiv:2201.03545, section 2.

    Example:
        >>> import torch
        >>> ConvNeXtBlock(16)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrInts = 7,
        *,
        expansion: float = 4,
        padding: Padding = "same",
        dilation: IntOrInts = 1,
        activation: _parts.Activation = "gelu",
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("channels", channels, low=1)
        hidden = check_int("channels * expansion", round(channels * expansion), low=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.depthwise = DepthwiseConv2d(channels, kernel_size, 1, padding, dilation, **factory)
        self.norm = nn.LayerNorm(channels, eps=eps, **factory)
        self.expand = nn.Linear(channels, hidden, **factory)
        self.activation = _parts.make_activation("activation", activation) or nn.Identity()
        self.project = nn.Linear(hidden, channels, **factory)
        if layer_scale is None:
            self.register_parameter("layer_scale", None)
        else:
            self.layer_scale = nn.Parameter(torch.full((channels,), float(layer_scale), **factory))
        self.drop_path = _drop_path("drop_path", drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.project(self.activation(self.expand(self.norm(out))))
        if self.layer_scale is not None:
            out = out * self.layer_scale
        return x + self.drop_path(out.permute(0, 3, 1, 2))
