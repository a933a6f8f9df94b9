"""Networks by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from torch import nn

from dwsep.errors import unknown_name
from dwsep.networks._weights import load_state, read_model
from dwsep.networks.deeplab_v3_plus import DeepLabV3Plus
from dwsep.networks.mobilenet_v1 import mobilenet_v1, mobilenet_v1_dense
from dwsep.networks.mobilenet_v2 import MobileNetV2
from dwsep.networks.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from dwsep.networks.series_separable import SeriesSeparable
from dwsep.networks.text_light import TextLight
from dwsep.networks.text_separable import TextSeparable
from dwsep.networks.xception import Xception
from dwsep.nn._separated import restructure_

# By what they are for: what goes in and what comes out is the same within a task.
_TASKS: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "classify": {
        "mobilenet_v1": mobilenet_v1,
        "mobilenet_v1_dense": mobilenet_v1_dense,
        "mobilenet_v2": MobileNetV2,
        "mobilenet_v3_large": mobilenet_v3_large,
        "mobilenet_v3_small": mobilenet_v3_small,
        "xception": Xception,
    },
    "segment": {"deeplab_v3_plus": DeepLabV3Plus},
    "text": {"text_light": TextLight, "text_separable": TextSeparable},
    "series": {"series_separable": SeriesSeparable},
}
_NETWORKS = {name: factory for networks in _TASKS.values() for name, factory in networks.items()}
_DEFAULT_CHANNELS = 3
_SHARED_OPTIONS = ("num_classes", "in_channels")


def names(task: str | None = None) -> tuple[str, ...]:
    """List the names that :func:`create` knows.

    Args:
        task: "classify" (images), "segment" (images to one class per pixel), "text" (tokens) or "series" for the
            networks of that task alone.

    Returns:
        The names in alphabetical order.

    Raises:
        ValueError: If the task is unknown.

    Example:
        >>> names("text")
        ('text_light', 'text_separable')
    """
    if task is None:
        return tuple(sorted(_NETWORKS))
    if task not in _TASKS:
        raise unknown_name("task", task, tuple(_TASKS))
    return tuple(sorted(_TASKS[task]))


def task_of(name: str) -> str:
    """What a network is for: "classify", "segment", "text" or "series".

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> task_of("deeplab_v3_plus")
        'segment'
    """
    _factory(name)
    return next(task for task, networks in _TASKS.items() if name in networks)


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
        ('width_multiplier', 'stem', 'dropout', 'residual', 'dense')
    """
    return tuple(p for p in inspect.signature(_factory(name)).parameters if p not in _SHARED_OPTIONS)


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int = _DEFAULT_CHANNELS,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> nn.Module:
    """Create a network by name.

    Args:
        name: One of :func:`names`.
        num_classes: Number of logits.
        in_channels: Image channels, or values per time step of a series; networks for text take none.
        weights: None for random weights, drawn from torch's global generator, or the path of a model file or training
            checkpoint (.safetensors) made by ``dwsep train`` or ``dwsep separate``; layers that were separated are
            separable in the network, too.
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
    if "in_channels" in inspect.signature(factory).parameters:
        options["in_channels"] = in_channels
    elif in_channels != _DEFAULT_CHANNELS:
        raise TypeError(f"{name} takes tokens and has no in_channels, got {in_channels!r}")
    model = factory(num_classes, **options)
    if weights is not None:
        state, info = read_model(weights)
        if info.network != name:
            raise ValueError(f"{weights} holds weights of {info.network!r}, not of {name!r}")
        restructure_(model, info.structure)
        load_state(model, state, weights)
    return model


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Build the network of a model file with its weights.

    Args:
        path: A model file or training checkpoint (.safetensors) made by ``dwsep train`` or ``dwsep separate``.

    Returns:
        The network, in training mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or not one of ours.
    """
    _, info = read_model(path)
    channels = {} if task_of(info.network) == "text" else {"in_channels": info.in_channels}
    return create(info.network, num_classes=info.num_classes, weights=path, **channels, **info.options)


def _factory(name: str) -> Callable[..., nn.Module]:
    if name not in _NETWORKS:
        raise unknown_name("network", name, names())
    return _NETWORKS[name]
