"""What a dense convolution becomes when a network is separated, in place, and how a network tells which did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dwsep.errors import ArgumentError
from dwsep.geometry import ConvGeometry
from dwsep.nn._separable import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

DENSE: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_SEPARABLE: dict[int, Any] = {1: DepthwiseSeparableConv1d, 2: DepthwiseSeparableConv2d, 3: DepthwiseSeparableConv3d}
_FORM = "separated_form"  # the attribute by which a module says that it stands for a dense convolution, and how
Separable = DepthwiseSeparableConv1d | DepthwiseSeparableConv2d | DepthwiseSeparableConv3d


class SumOfRanks(nn.Module):
    """Adds up neighbouring channels: the ranks of each output of a layer with the pointwise factor first.

    Args:
        rank: how many channels make one.
        ndim: spatial axes of the input.
        bias: added to the sums, (K,), or ``None``.

    Example:
        >>> import torch
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
    if type(module) not in DENSE.values() or "forward" in module.__dict__ or "weight" not in module._parameters:
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
    return next(ndim for ndim, kind in DENSE.items() if isinstance(module, kind))


def geometry_of(conv: _ConvNd) -> ConvGeometry:
    """A plain convolution's geometry."""
    padding: Any = conv.padding
    return ConvGeometry.make(ndim_of(conv), conv.kernel_size, conv.stride, padding, conv.dilation)


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
    setattr(layer, _FORM, {"order": order, "rank": rank, "bias": bias is not None})
    return layer.train(conv.training)


def factors_of(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Depthwise and pointwise weight of what :func:`separable` made."""
    inner: Any = layer[0] if isinstance(layer, PointwiseFirstSeparable) else layer
    return inner.depthwise.weight, inner.pointwise.weight


class State(NamedTuple):
    """What a module is: its class and everything in it."""

    kind: type[nn.Module]
    content: dict[str, Any]


def state_of(module: nn.Module) -> State:
    """A module as it is now, to go back to."""
    return State(type(module), dict(module.__dict__))


def successor(module: nn.Module, new: nn.Module) -> State:
    """What ``module`` becomes: ``new``, with the hooks and the users' own attributes of ``module``.

    A hook's handle goes on working, since the dictionaries of hooks are the same objects.
    """
    kind: Any = type(module)
    fresh = kind() if isinstance(module, nn.Sequential) else kind(1, 1, 1)
    own = {name: value for name, value in module.__dict__.items() if name not in fresh.__dict__ and name != _FORM}
    hooks = {name: value for name, value in module.__dict__.items() if "hook" in name}
    return State(type(new), {**own, **new.__dict__, **hooks, "training": module.training})


def become(module: nn.Module, state: State) -> None:
    """Turn a module into another, the object staying the same: shared uses, references and the root included."""
    module.__class__ = state.kind
    module.__dict__.clear()
    module.__dict__.update(state.content)


def structure_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The modules of a network that stand for dense convolutions: what :func:`restructure_` takes.

    Returns:
        By name, "order", "rank" and "bias" of the module; empty for a network that was never separated.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(8, 16, 3))
        >>> restructure_(model, {"0": {"order": "depthwise_first", "rank": 2, "bias": True}})
        >>> structure_of(model)
        {'0': {'order': 'depthwise_first', 'rank': 2, 'bias': True}}
    """
    return {name: dict(getattr(module, _FORM)) for name, module in model.named_modules() if hasattr(module, _FORM)}


def restructure_(model: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a dense network the modules that :func:`dwsep.separate_` gave another of its kind, weights not yet set.

    So a separated network is loaded: build the dense one, restructure it, load the state dict.

    Args:
        model: the dense network; changed in place.
        structure: what :func:`structure_of` gives for the other.

    Raises:
        ArgumentError: (a ``ValueError``) the model has no such convolution.
        TypeError: ``model`` is no module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(8, 16, 3))
        >>> restructure_(model, {"0": {"order": "depthwise_first", "rank": 2, "bias": True}})
        >>> list(model.state_dict())
        ['0.depthwise.weight', '0.pointwise.weight', '0.pointwise.bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    modules = dict(model.named_modules())
    for name in structure:
        conv = modules.get(name)
        if not isinstance(conv, _ConvNd) or why_not(conv) is not None:
            raise ArgumentError(f"structure: the model has no dense convolution {name!r}")
    for name, form in structure.items():
        conv: Any = modules[name]
        bias = conv.bias
        if bias is None and form["bias"]:
            bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        new = empty_separable(conv, form["order"], form["rank"], bias)
        become(conv, successor(conv, new))
