"""When a separable layer can run as one operator, and the weights it then takes (batch norms folded)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dwsep.nn import _depthwise, _parts

if TYPE_CHECKING:
    from dwsep.nn._separable import _DepthwiseSeparableConv

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POINTWISE_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


class Fused(NamedTuple):
    """Arguments of the fused operator: depthwise and pointwise weight and bias; activations and residual."""

    weights: Weights
    options: tuple[str, str, str]


def hooks_of(module: nn.Module) -> tuple[dict, ...]:
    """The dictionaries which hold a module's hooks: all empty where nothing has to see it run."""
    return (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def _folds(norm: nn.Module | None) -> bool:
    """Whether a norm is an affine map with constants: batch norm in evaluation, with running statistics."""
    if norm is None:
        return True
    return type(norm) in _BATCH_NORMS and not norm.training and norm.running_mean is not None


def fused_options(layer: _DepthwiseSeparableConv) -> tuple[str, str, str] | None:
    """Activations and residual of the fused operator; ``None`` if the submodules must run one by one.

    They must where a norm is no constant affine map, where an activation has no name, and where a submodule was
    replaced or carries hooks, which have to see it run.
    """
    depthwise, pointwise = layer.depthwise, layer.pointwise
    if not isinstance(depthwise, _depthwise._DepthwiseConv) or depthwise.activation is not None:
        return None
    if type(depthwise).forward is not _depthwise._DepthwiseConv.forward:
        return None
    if type(pointwise).forward not in _POINTWISE_FORWARDS:
        return None
    inner_activation, activation = _parts.fused_name(layer.inner_activation), _parts.fused_name(layer.activation)
    if inner_activation is None or activation is None:
        return None
    if not (_folds(layer.inner_norm) and _folds(layer.norm)):
        return None
    if layer.residual == "depthwise" and layer.norm is not None:
        return None  # the norm scales D as well, which pointwise weights alone cannot
    for module in layer._modules.values():
        if module is not None and any(hooks_of(module)):
            return None
    return inner_activation, activation, layer.residual or "none"


def raw_weights(layer: _DepthwiseSeparableConv) -> Weights:
    """The factors' own weights and biases."""
    depthwise, pointwise = layer.depthwise, layer.pointwise
    return depthwise.weight, pointwise.weight, depthwise.bias, pointwise.bias


def fused_arguments(layer: _DepthwiseSeparableConv) -> Fused | None:
    """What the fused operator takes in place of the layer's submodules, ``None`` if they must run one by one.

    They must also where a batch norm would be folded but parameters want gradients.
    """
    options = fused_options(layer)
    if options is None:
        return None
    weights = raw_weights(layer)
    if layer.inner_norm is None and layer.norm is None:
        return Fused(weights, options)
    if torch.is_grad_enabled() and wants_gradient(layer):
        return None
    return Fused(fold(weights, layer.inner_norm, layer.norm), options)


def wants_gradient(layer: nn.Module) -> bool:
    """Whether any parameter of the layer requires a gradient."""
    for child in layer._modules.values():  # training finds one here, sooner than a walk through the tree begins
        if child is not None:
            for parameter in child._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    return True
    return any(parameter.requires_grad for parameter in layer.parameters())


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel of a batch norm in evaluation."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _fold_one(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor | None]:
    if norm is None:
        return weight, bias
    scale, shift = _affine(norm)
    scaled = weight * scale.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1))
    return scaled, (shift if bias is None else bias * scale + shift).to(weight.dtype)


@torch.no_grad()
def fold(weights: Weights, inner_norm: Any, norm: Any) -> Weights:
    """Weights and biases with the batch norms behind the factors folded in."""
    depthwise_weight, depthwise_bias = _fold_one(weights[0], weights[2], inner_norm)
    pointwise_weight, pointwise_bias = _fold_one(weights[1], weights[3], norm)
    return depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias
