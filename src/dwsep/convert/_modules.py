"""Dense convolution modules to separable ones of the same name, device, dtype and mode, and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dwsep.convert.fit import Factors, unpacked
from dwsep.geometry import ConvGeometry
from dwsep.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

_DENSE: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_SEPARABLE: dict[int, Any] = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}
Separable = DepthwiseSeparableConv1d | DepthwiseSeparableConv2d | DepthwiseSeparableConv3d


class SumOfRanks(nn.Module):
    """Adds up neighbouring channels: the ranks of each output of a layer with the pointwise factor first.

    Args:
        rank: how many channels make one.
        ndim: spatial axes of the input.
        bias: added to the sums, (K,), or ``None``.

    Example:
        >>> SumOfRanks(2, 1)(torch.ones(1, 6, 4)).shape
        torch.Size([1, 3, 4])
    """

    def __init__(self, rank: int, ndim: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.rank, self.ndim = rank, ndim
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K * rank, *spatial), or unbatched, to (N, K, *spatial)."""
        axis = -self.ndim - 1
        out = x.unflatten(axis, (-1, self.rank)).sum(axis)
        bias: Any = self.bias
        return out if bias is None else out + bias.view(-1, *(1,) * self.ndim)

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class PointwiseFirstSeparable(nn.Sequential):
    """A separable layer with the pointwise factor first and a rank above 1: the ranks are added up after it."""


def why_not(module: nn.Module) -> str | None:
    """Why a convolution cannot become separable; ``None`` if it can, or if there is nothing to say of it."""
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution"
    if not isinstance(module, _ConvNd) or is_pointwise(module):
        return None
    if type(module) not in _DENSE.values() or "forward" in module.__dict__ or "weight" not in module._parameters:
        return "its convolution is not torch's plain one"
    if module.groups > 1:
        return "depthwise already" if module.groups == module.in_channels else f"has {module.groups} groups"
    if not module.weight.is_floating_point():
        return f"its weight is of {module.weight.dtype}"
    return None


def is_pointwise(module: _ConvNd) -> bool:
    """Whether a convolution has one tap, so that nothing can be separated."""
    return math.prod(module.kernel_size) == 1


def ndim_of(module: nn.Module) -> int:
    """Spatial axes of a plain convolution."""
    return next(ndim for ndim, kind in _DENSE.items() if isinstance(module, kind))


def geometry_of(conv: _ConvNd) -> ConvGeometry:
    """A plain convolution's geometry."""
    padding: Any = conv.padding
    return ConvGeometry.make(ndim_of(conv), conv.kernel_size, conv.stride, padding, conv.dilation)


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


def empty_separable(conv: _ConvNd, order: str, rank: int, bias: nn.Parameter | None) -> nn.Module:
    """The separable module that a convolution becomes, its two weights not yet set."""
    ndim, first = ndim_of(conv), order == "depthwise_first"
    padding: Any = conv.padding
    layer = _SEPARABLE[ndim](
        conv.in_channels,
        conv.out_channels if first else conv.out_channels * rank,
        conv.kernel_size,
        conv.stride,
        padding if isinstance(padding, str) else tuple(padding),
        conv.dilation,
        depth_multiplier=rank if first else 1,
        bias=False,
        padding_mode=conv.padding_mode,
        order=order,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    # A single bias, behind everything: one in between would say the same twice, or meet the padding.
    if first:
        layer.pointwise.register_parameter("bias", bias)
    elif rank == 1:
        layer.depthwise.register_parameter("bias", bias)
    else:
        layer = PointwiseFirstSeparable(layer, SumOfRanks(rank, ndim, bias))
    for parameter in factors_of(layer):
        parameter.requires_grad_(conv.weight.requires_grad)
    return layer.train(conv.training)


def separable(conv: _ConvNd, factors: Factors, bias: nn.Parameter | None) -> nn.Module:
    """The separable module with these factors and this bias."""
    layer = empty_separable(conv, factors.order, factors.rank, bias)
    with torch.no_grad():
        for parameter, value in zip(factors_of(layer), (factors.depthwise, factors.pointwise), strict=True):
            parameter.copy_(value)
    return layer


def factors_of(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Depthwise and pointwise weight of what :func:`separable` made."""
    inner: Any = layer[0] if isinstance(layer, PointwiseFirstSeparable) else layer
    return inner.depthwise.weight, inner.pointwise.weight


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
    conv = _DENSE[g.ndim](
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
