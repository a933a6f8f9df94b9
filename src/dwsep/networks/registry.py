"""Networks by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from torch import nn

from dwsep.errors import unknown_name
from dwsep.networks._weights import load_state, read_model
from dwsep.networks.mobilenet_v1 import mobilenet_v1, mobilenet_v1_dense

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v1_dense": mobilenet_v1_dense,
}
_SHARED_OPTIONS = ("num_classes", "in_channels")


def names() -> tuple[str, ...]:
    """List the names that :func:`create` knows.

    Returns:
        The names in alphabetical order.

    Example:
        >>> names()
        ('mobilenet_v1', 'mobilenet_v1_dense')
    """
    return tuple(sorted(_NETWORKS))


def option_names(name: str) -> tuple[str, ...]:
    """List the options of a network, besides num_classes, in_channels and weights.

    Args:
        name: One of :func:`names`.

    Returns:
        The option names.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> option_names("mobilenet_v1")
        ('width_multiplier', 'stem', 'dropout', 'residual')
    """
    return tuple(p for p in inspect.signature(_factory(name)).parameters if p not in _SHARED_OPTIONS)


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> nn.Module:
    """Create a network by name.

    Args:
        name: One of :func:`names`.
        num_classes: Number of logits.
        in_channels: Image channels.
        weights: None for random weights, drawn from torch's global generator, or the path of a model file or training
            checkpoint (.safetensors) made by ``dwsep train``.
        **options: Options of the network; :func:`option_names` lists them.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If the name is unknown, an option is out of range, or the weights are damaged or of another network.
        TypeError: If the network has no such option, or weights is no path.
        FileNotFoundError: If there is no such weights file.

    Example:
        >>> import torch
        >>> network = create("mobilenet_v1", num_classes=10, in_channels=1, width_multiplier=0.25, stem="small")
        >>> network(torch.zeros(1, 1, 28, 28)).shape
        torch.Size([1, 10])
    """
    factory = _factory(name)
    unknown = [option for option in options if option not in option_names(name)]
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(map(repr, unknown))}, valid: {', '.join(map(repr, option_names(name)))}"
        )
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights must be None or the path of a .safetensors file, got {type(weights).__name__}")
    model = factory(num_classes, in_channels=in_channels, **options)
    if weights is not None:
        state, info = read_model(weights)
        if info.network != name:
            raise ValueError(f"{weights} holds weights of {info.network!r}, not of {name!r}")
        load_state(model, state, weights)
    return model


def _factory(name: str) -> Callable[..., nn.Module]:
    if name not in _NETWORKS:
        raise unknown_name("network", name, names())
    return _NETWORKS[name]
