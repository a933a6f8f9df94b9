"""Convolution weights with a batch norm in evaluation folded in, and what they were computed from."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

_VERSION = Tensor._version.__get__  # type: ignore[attr-defined]


def folds(norm: nn.BatchNorm2d | None) -> bool:
    """Whether a norm is an affine map with constants: batch norm in evaluation, with running statistics."""
    return norm is None or (not norm.training and norm.running_mean is not None and norm.running_var is not None)


@torch.no_grad()
def fold(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | None, channels: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution with the norm behind it folded in, computed in float64, as float32.

    ``channels``, from which to which, are those of the norm that the convolution makes, where others make the rest.
    """
    weight, bias = conv.weight.detach(), conv.bias
    if norm is None:
        return weight.float(), None if bias is None else bias.detach().float()
    scale, shift = affine(norm)
    if channels is not None:
        scale, shift = scale[slice(*channels)], shift[slice(*channels)]
    if bias is not None:
        shift = bias.double() * scale + shift
    folded = weight.double() * scale.view(-1, 1, 1, 1)
    return folded.float(), shift.float()


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

    def __init__(self, modules: list[nn.Conv2d | nn.BatchNorm2d]) -> None:
        self.holders: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
        self.eps = [norm.eps for norm in self.norms]
        for module in modules:
            places = [(module._parameters, name) for name in ("weight", "bias")]
            if isinstance(module, nn.BatchNorm2d):
                places += [(module._buffers, name) for name in ("running_mean", "running_var")]
            for holder, name in places:
                self.holders.append(holder)
                self.names.append(name)
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
            and [norm.eps for norm in self.norms] == self.eps
        )
