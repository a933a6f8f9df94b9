"""Which convolutions of a network may be separated, and a line of the report for each that may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from dwsep.convert._config import SeparateConfig, matches
from dwsep.convert._modules import describe
from dwsep.convert._options import Layer
from dwsep.convert._report import SeparatedLayer
from dwsep.errors import ArgumentError
from dwsep.nn._separated import is_pointwise, why_not

Filter = Callable[[str, nn.Module], bool]
Lines = dict[str, SeparatedLayer | None]


def find(model: nn.Module, config: SeparateConfig, filter_fn: Filter | None) -> tuple[Lines, dict[str, Any]]:
    """The convolutions that may be separated, by name, and a line for each that may not, in the network's order."""
    names = [name for name, _ in model.named_modules()]
    for argument in ("include", "exclude"):
        for pattern in getattr(config, argument):
            if not any(matches(pattern, name) for name in names):
                raise ArgumentError(f"{argument}: {pattern!r} matches no module of the model")
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    filtered = [name for name, module in model.named_modules() if filter_fn is not None and not filter_fn(name, module)]
    lines: Lines = {}
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _ConvNd) or (why_not(module) is None and is_pointwise(module)):
            continue
        reason = why_not(module)
        if reason is None:
            reason = _unwanted(name, module, config, filtered)
        if reason is None:
            others = [other for other in owners[id(module.weight)] if other != name]
            reason = f"its weight is that of {others[0]}, too" if others else None
        lines[name] = None if reason is None else left(name, module, reason)
        if reason is None:
            layers[name] = module
    return lines, layers


def _unwanted(name: str, conv: _ConvNd, config: SeparateConfig, filtered: Sequence[str]) -> str | None:
    if any(root in ("", name) or name.startswith(f"{root}.") for root in filtered):
        return "filter_fn returned False"
    if config.include and not any(matches(pattern, name) for pattern in config.include):
        return "not in include"
    if any(matches(pattern, name) for pattern in config.exclude):
        return "in exclude"
    if min(conv.in_channels, conv.out_channels) < config.min_channels:
        return f"fewer than {config.min_channels} channels"
    return None


def left(name: str, conv: _ConvNd, reason: str, layer: Layer | None = None) -> SeparatedLayer:
    macs = 0 if layer is None else layer.macs[None]
    seconds = None if layer is None else layer.seconds.get(None)
    return SeparatedLayer(
        name,
        describe(conv),
        "left dense",
        reason,
        macs_before=macs,
        macs_after=macs,
        seconds_before=seconds,
        seconds_after=seconds,
    )
