"""Convolution weights with a batch norm in evaluation folded in, and what they were computed from."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.accelerate._program import Stage

_VERSION = Tensor._version.__get__  # type: ignore[attr-defined]


def folds(norm: nn.BatchNorm2d | None) -> bool:
    """Whether a norm is an affine map with constants: batch norm in evaluation, with running statistics."""
    return norm is None or (not norm.training and norm.running_mean is not None and norm.running_var is not None)


def fold(stage: Stage) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a stage's convolution with its norm and factors folded in, computed in float64, as float32."""
    assert stage.conv is not None
    if stage.norm is None and stage.scale is None:
        bias = stage.conv.bias
        return stage.conv.weight.detach().float(), None if bias is None else bias.detach().float()
    weight, bias = folded(stage)
    return weight.float(), None if bias is None else bias.float()


@torch.no_grad()
def folded(stage: Stage) -> tuple[Tensor, Tensor | None]:
    """The same in float64."""
    conv, norm, channels = stage.conv, stage.norm, stage.norm_channels
    assert conv is not None
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    weight, bias = weight.double(), None if bias is None else bias.double()
    if norm is not None:
        scale, shift = affine(norm)
        if channels is not None:
            scale, shift = scale[slice(*channels)], shift[slice(*channels)]
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = shift if bias is None else bias * scale + shift
    if stage.scale is not None:
        owner, name = stage.scale
        factors = owner._parameters[name].detach().double().reshape(-1)  # type: ignore[union-attr]
        weight = weight * factors.view(-1, 1, 1, 1)
        bias = None if bias is None else bias * factors
    return weight, bias


@torch.no_grad()
def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel of a batch norm in evaluation, float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


class Sources:
    """Tensors where modules keep them, and how they were: asks in a few passes of C whether any has changed.

    A change is seen by identity, version counter and address: writes through ``parameter.data`` in place bypass
    these, so that switching a module between training and evaluation also renews what was computed.
    """

    def __init__(
        self,
        modules: list[nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm],
        parameters: Sequence[tuple[nn.Module, str]] = (),
    ) -> None:
        self.holders: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
        self.with_eps = [module for module in modules if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))]
        self.eps = [norm.eps for norm in self.with_eps]
        for module in modules:
            places = [(module._parameters, name) for name in ("weight", "bias")]
            if isinstance(module, nn.BatchNorm2d):
                places += [(module._buffers, name) for name in ("running_mean", "running_var")]
            for holder, name in places:
                self.holders.append(holder)
                self.names.append(name)
        self.holders += [owner._parameters for owner, _ in parameters]
        self.names += [name for _, name in parameters]
        self.values = [holder[name] for holder, name in zip(self.holders, self.names, strict=True)]
        self.tensors: list[Tensor] = [value for value in self.values if value is not None]
        if any(type(tensor) not in (Tensor, nn.Parameter) or tensor.is_inference() for tensor in self.tensors):
            raise NotImplementedError("a parameter has no version")
        self.versions = list(map(_VERSION, self.tensors))
        self.addresses = list(map(Tensor.data_ptr, self.tensors))

    def are_current(self) -> bool:
        """Whether everything is as it was."""
        try:
            if not all(map(operator.is_, map(operator.getitem, self.holders, self.names), self.values)):
                return False
        except KeyError:
            return False
        return (
            list(map(_VERSION, self.tensors)) == self.versions
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
            and [norm.eps for norm in self.with_eps] == self.eps
        )
