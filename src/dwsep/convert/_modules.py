"""Dense convolution modules to separable ones of the same name, device, dtype and mode, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dwsep.convert.fit import Factors, unpacked
from dwsep.geometry import ConvGeometry
from dwsep.nn._separated import DENSE, PointwiseFirstSeparable, Separable, empty_separable, factors_of


def describe(conv: _ConvNd) -> str:
    """A convolution in words.

    Example:
        >>> describe(nn.Conv2d(8, 16, 3, 2, 1))
        '3x3, 8 to 16, stride 2'
    """
    parts = ["x".join(map(str, conv.kernel_size)), f"{conv.in_channels} to {conv.out_channels}"]
    for name in ("stride", "dilation"):
        value = getattr(conv, name)
        if set(value) != {1}:
            parts.append(f"{name} {'x'.join(map(str, value if len(set(value)) > 1 else value[:1]))}")
    return ", ".join(parts)


def separable(conv: _ConvNd, factors: Factors, bias: nn.Parameter | None) -> nn.Module:
    """The separable module with these factors and this bias."""
    layer = empty_separable(conv, factors.order, factors.rank, bias)
    with torch.no_grad():
        for parameter, value in zip(factors_of(layer), (factors.depthwise, factors.pointwise), strict=True):
            parameter.copy_(value)
    return layer


def why_not_merged(layer: Separable) -> str | None:
    """Why a separable layer has no dense equal; ``None`` if it has one."""
    if layer.inner_norm is not None or layer.inner_activation is not None:
        return "a norm or an activation between its factors"
    if layer.norm is not None or layer.activation is not None or layer.residual is not None:
        return "a norm, an activation or a residual of its own"
    if not isinstance(layer.pointwise, _ConvNd) or layer.depthwise.activation is not None:
        return "another module in place of a factor"
    g: ConvGeometry = layer.depthwise.geometry
    same = layer.padding == "same" and set(g.stride) == {1}
    if g.padding is None or (not same and any(low != high or low < 0 for low, high in g.padding)):
        return "a padding that torch's dense convolution does not have"
    padded = layer.padding_mode == "zeros" and any(low or high for low, high in g.padding)
    if layer.order == "pointwise_first" and layer.pointwise.bias is not None and padded:
        return "zeros padded after a bias"
    return None


@torch.no_grad()
def merged(layer: Any) -> nn.Module:
    """The dense convolution that does what a separable layer does; its weight is rounded once."""
    total: Any = layer[1] if isinstance(layer, PointwiseFirstSeparable) else None
    inner: Any = layer if total is None else layer[0]
    first, g = inner.order == "depthwise_first", inner.depthwise.geometry
    mixed, taps = inner.pointwise.weight.double(), inner.depthwise.weight.double()
    rank = total.rank if total is not None else inner.depth_multiplier if first else 1
    if not first and inner.depth_multiplier > 1:
        mixed = mixed.repeat_interleave(inner.depth_multiplier, 0)  # outputs which share a mixture
    pointwise, depthwise = unpacked(inner.order, rank, mixed, taps)
    whole = torch.einsum("kcr,crt->kct" if first else "krc,krt->kct", pointwise, depthwise)
    outputs, channels = whole.shape[:2]
    padding = inner.padding if isinstance(inner.padding, str) and set(g.stride) == {1} else None
    conv = DENSE[g.ndim](
        channels,
        outputs,
        g.kernel_size,
        g.stride,
        padding or tuple(low for low, _ in g.padding),
        g.dilation,
        bias=False,
        padding_mode=inner.padding_mode,
        device=taps.device,
        dtype=inner.depthwise.weight.dtype,
    )
    conv.weight.copy_(whole.view_as(conv.weight))
    conv.weight.requires_grad_(inner.depthwise.weight.requires_grad)
    conv.register_parameter("bias", _merged_bias(inner, total, mixed, depthwise))
    return conv.train(layer.training)


def _merged_bias(inner: Any, total: Any, mixed: Tensor, depthwise: Tensor) -> nn.Parameter | None:
    last, early = (
        (inner.pointwise, inner.depthwise) if inner.order == "depthwise_first" else (inner.depthwise, inner.pointwise)
    )
    if early.bias is None and (total is None or last.bias is None):
        return last.bias if total is None else total.bias  # the very parameter, which an optimizer knows
    bias = torch.zeros(last.weight.shape[0], dtype=torch.float64, device=mixed.device)
    if early.bias is not None:
        value = early.bias.double()
        if inner.order == "depthwise_first":
            bias += mixed.flatten(1) @ value
        else:
            bias += value.repeat_interleave(inner.depth_multiplier) * depthwise.sum(-1).flatten()
    if last.bias is not None:
        bias += last.bias.double()
    if total is not None:
        bias = bias.view(-1, total.rank).sum(1)
        bias += 0 if total.bias is None else total.bias.double()
    return nn.Parameter(bias.to(inner.depthwise.weight.dtype))
