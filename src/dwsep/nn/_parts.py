"""Norms, activations and initialisation that the layers share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.errors import unknown_name
from dwsep.geometry import ConvGeometry
from dwsep.kernels.activations import NAMES

Norm = str | Callable[[int], nn.Module] | None
Activation = str | type[nn.Module] | nn.Module | Callable[[Tensor], Tensor] | None

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
}
_BATCH_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class FunctionActivation(nn.Module):
    """A plain function of a tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", repr(self.function))


class WithGeometry(nn.Module):
    """A layer's geometry under the names that torch's convolutions have."""

    geometry: ConvGeometry

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Taps per axis."""
        return self.geometry.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """Step of the window per axis, in elements."""
        return self.geometry.stride

    @property
    def dilation(self) -> tuple[int, ...]:
        """Distance of neighbouring taps per axis, in elements."""
        return self.geometry.dilation


def make_norm(argument: str, norm: Any, ndim: int, channels: int, factory: dict[str, Any]) -> nn.Module | None:
    """The module of a ``norm`` argument: a name, a module, or a callable of the number of channels."""
    if norm is None:
        return None
    if isinstance(norm, str):
        if norm != "batch":
            raise unknown_name(argument, norm, ("batch",))
        return _BATCH_NORM[ndim](channels, **factory)
    if isinstance(norm, nn.Module):
        return norm
    if not callable(norm):
        raise TypeError(f"{argument} must be None, a name, a module or a callable of the channels, got {norm!r}")
    module = norm(channels)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: the callable must return a torch.nn.Module, got {type(module).__name__}")
    # A callable which knows nothing of our factory arguments still follows the layer.
    return module.to(device=factory.get("device"), dtype=factory.get("dtype"))


def make_activation(argument: str, activation: Any) -> nn.Module | None:
    """The module of an ``activation`` argument: a name, a module, a module class, or a function of a tensor."""
    if activation is None:
        return None
    if isinstance(activation, str):
        if activation not in _ACTIVATIONS:
            raise unknown_name(argument, activation, NAMES)
        return _ACTIVATIONS[activation]()
    if isinstance(activation, nn.Module):
        return activation
    base: Any = activation.func if isinstance(activation, functools.partial) else activation
    if isinstance(base, type) and issubclass(base, nn.Module):
        return activation()
    if not callable(activation):
        raise TypeError(f"{argument} must be None, a name, a module, its class or a function, got {activation!r}")
    function: Any = activation
    return FunctionActivation(function)


def fused_name(module: nn.Module | None) -> str | None:
    """The name under which kernels can fuse an activation module, ``None`` if they cannot."""
    if module is None:
        return "none"
    kind = type(module)
    if kind is nn.GELU and module.approximate != "none":
        return None
    return next((name for name, known in _ACTIVATIONS.items() if kind is known), None)


def init_factor_(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
    """Draw a factor's parameters as ``torch.nn.Conv2d`` would from ``fan_in``: uniform within 1 / sqrt(fan_in).

    ``torch.nn.Conv2d`` takes fan_in = weight.shape[1] * taps, which for a depthwise kernel is the number of its taps
    and for a pointwise one the number of its input channels: each factor by its own fan-in.
    """
    bound = 1 / math.sqrt(fan_in)
    with torch.no_grad():
        weight.uniform_(-bound, bound)
        if bias is not None:
            bias.uniform_(-bound, bound)
