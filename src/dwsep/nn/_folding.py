"""When a separable layer can run as one operator, and the weights it then takes (batch norms folded)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dwsep import _functorch, functional
from dwsep.nn import _depthwise, _parts

if TYPE_CHECKING:
    from dwsep.nn._separable import _DepthwiseSeparableConv

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POINTWISE_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


class Fused(NamedTuple):
    """Arguments of the fused operator: depthwise and pointwise weight and bias; activations and residual.

    ``packed`` has the same weights in the native kernels' order, where they could be prepared ahead.
    """

    weights: Weights
    options: tuple[str, str, str]
    packed: Tensor | None


class FoldedWeights:
    """Weights with batch norms folded in and packed, remembered until one of the tensors behind them changes.

    A change is seen by the tensors' version counters; writes through ``parameter.data`` bypass these, so switching
    between training and evaluation also forgets. Not part of the layer's state: copies and pickles start empty.
    """

    def __init__(self) -> None:
        self.key: tuple[Any, ...] | None = None
        self.value: tuple[Weights, Tensor | None] | None = None
        # Keeps the tensors behind the key alive, so that no other can take their place in memory.
        self.sources: tuple[Tensor, ...] = ()

    def __deepcopy__(self, memo: Any) -> FoldedWeights:
        return FoldedWeights()

    def __reduce__(self) -> tuple[Any, ...]:
        return FoldedWeights, ()

    def clear(self) -> None:
        """Forget the weights."""
        self.key = self.value = None
        self.sources = ()


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _folds(norm: nn.Module | None) -> bool:
    """Whether a norm is an affine map with constants: batch norm in evaluation, with running statistics."""
    if norm is None:
        return True
    return type(norm) in _BATCH_NORMS and not norm.training and norm.running_mean is not None


def fused_arguments(layer: _DepthwiseSeparableConv) -> Fused | None:
    """What the fused operator takes in place of the layer's submodules; ``None`` if they must run one by one.

    They must where a norm is no constant affine map, or is one whose parameters want gradients; where an activation
    has no name; and where a submodule was replaced or carries hooks, which have to see it run.
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
    inner_norm, norm = layer.inner_norm, layer.norm
    if not (_folds(inner_norm) and _folds(norm)):
        return None
    for module in (depthwise, inner_norm, layer.inner_activation, pointwise, norm, layer.activation):
        if module is not None and _has_hooks(module):
            return None
    options = (inner_activation, activation, layer.residual or "none")
    weights = (depthwise.weight, pointwise.weight, depthwise.bias, pointwise.bias)
    wants_gradient = torch.is_grad_enabled() and _wants_gradient(weights, inner_norm, norm)
    if inner_norm is None and norm is None:
        if wants_gradient:
            return Fused(weights, options, None)
    elif wants_gradient or (layer.residual == "depthwise" and norm is not None):
        return None  # in the latter case the norm scales D as well, which pointwise weights alone cannot
    weights, packed = _prepared(layer, weights, inner_norm, norm)
    return Fused(weights, options, packed)


def _wants_gradient(weights: Weights, *norms: nn.Module | None) -> bool:
    tensors = [*weights, *(p for norm in norms if norm is not None for p in norm.parameters())]
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _prepared(layer: Any, weights: Weights, inner_norm: Any, norm: Any) -> tuple[Weights, Tensor | None]:
    """Folded and packed weights, from the layer's memory where nothing behind them changed."""
    if torch.compiler.is_compiling():
        return _fold(weights, inner_norm, norm), None
    sources = [tensor for tensor in weights if tensor is not None]
    scalars: list[float] = []
    for batch_norm in (inner_norm, norm):
        if batch_norm is not None:
            tensors = (batch_norm.weight, batch_norm.bias, batch_norm.running_mean, batch_norm.running_var)
            sources += [tensor for tensor in tensors if tensor is not None]
            scalars.append(batch_norm.eps)
    if not all(map(_has_version, sources)):
        return _fold(weights, inner_norm, norm), None
    key = (*[(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in sources], *scalars)
    cache: FoldedWeights = layer._folded
    if cache.key != key or cache.value is None:
        folded = _fold(weights, inner_norm, norm)
        cache.value = folded, _packed(folded)
        cache.key, cache.sources = key, tuple(sources)
    return cache.value


def _packed(weights: Weights) -> Tensor | None:
    if not functional.packs(weights[0]):
        return None
    detached = (None if tensor is None else tensor.detach() for tensor in weights)
    return torch.ops.dwsep.pack_separable_weights(*detached)


def _has_version(tensor: Tensor) -> bool:
    """Whether a change of the tensor can be told by its version counter: not inside ``vmap``, not when fake."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference() and not _functorch.is_wrapped(tensor)


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
def _fold(weights: Weights, inner_norm: Any, norm: Any) -> Weights:
    depthwise_weight, depthwise_bias = _fold_one(weights[0], weights[2], inner_norm)
    pointwise_weight, pointwise_bias = _fold_one(weights[1], weights[3], norm)
    return depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias
