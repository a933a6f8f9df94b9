"""What a separable layer remembers for inference: weights folded and packed, and all that would make them stale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dwsep import _functorch, functional
from dwsep.geometry import ConvGeometry
from dwsep.nn import _folding

if TYPE_CHECKING:
    from dwsep.nn._separable import _DepthwiseSeparableConv


class _Source(NamedTuple):
    """A tensor behind the plan, where its module keeps it, and how it was."""

    holder: dict[str, Any]
    name: str
    tensor: Tensor | None
    version: int
    address: int


class Plan:
    """A layer's inference with its weights prepared; valid until :meth:`is_current` says otherwise."""

    def __init__(self, layer: _DepthwiseSeparableConv, options: tuple[str, str, str], sources: list[_Source]) -> None:
        self.options = options
        self.modules = tuple(layer._modules.values())
        present = [module for module in self.modules if module is not None]
        self.hooks = [hooks for module in present for hooks in _folding.hooks_of(module)]
        self.norms = [(norm, norm.eps) for norm in (layer.inner_norm, layer.norm) if norm is not None]
        self.gelus = [module for module in present if type(module) is nn.GELU]
        self.sources = sources
        self.geometry: ConvGeometry = layer.depthwise.geometry
        self.zeros = layer.depthwise.padding_mode == "zeros"
        self.in_channels = layer.in_channels
        with torch.no_grad():
            weights = _folding.fold(_folding.raw_weights(layer), layer.inner_norm, layer.norm)
        self.weights = tuple(None if tensor is None else tensor.detach() for tensor in weights)
        depthwise, pointwise = weights[0], weights[1]
        self.dtype = depthwise.dtype
        self.channels = depthwise.shape[0], pointwise.shape[0]
        packs = self.zeros and functional.packs(depthwise)
        multiplier = layer.depth_multiplier if options[2] != "depthwise" else 1
        self.packed = torch.ops.dwsep.pack_separable_weights(*self.weights, multiplier) if packs else None
        # Padding by spatial size; whether the output is valid, and a residual fits it, is decided once for each.
        self.pads: dict[tuple[int, ...], list[int]] = {}

    def is_current(self, layer: _DepthwiseSeparableConv) -> bool:
        """Whether nothing that the prepared weights come from has changed."""
        if tuple(layer._modules.values()) != self.modules or layer.depthwise.geometry is not self.geometry:
            return False
        for hooks in self.hooks:
            if hooks:
                return False
        for norm, eps in self.norms:
            if norm.training or norm.eps != eps:
                return False
        for gelu in self.gelus:
            if gelu.approximate != "none":
                return False
        for holder, name, tensor, version, address in self.sources:
            if holder.get(name) is not tensor:
                return False
            if tensor is not None and (tensor._version != version or tensor.data_ptr() != address):
                return False
        return True

    def run(self, layer: _DepthwiseSeparableConv, x: Tensor) -> Tensor:
        """The layer's output for a batched input."""
        if self._takes(x):
            spatial = x.shape[2:]
            pads = self.pads.get(spatial)
            if pads is None:
                pads = self._check(layer, x)
            return self._run_packed(x, pads)
        x, geometry = layer.depthwise.padded(x)
        return functional.depthwise_separable_conv(x, *self.weights, geometry, *self.options, "auto")  # type: ignore[arg-type]

    def run_unpadded(self, x: Tensor) -> Tensor:
        """The layer without its padding, for an input which the caller has checked."""
        g = self.geometry
        if self._takes(x):
            return self._run_packed(x, [0] * 2 * g.ndim)
        unpadded = ConvGeometry(g.ndim, g.kernel_size, g.stride, g.dilation, ((0, 0),) * g.ndim)
        return functional.depthwise_separable_conv(x, *self.weights, unpadded, *self.options, "auto")  # type: ignore[arg-type]

    def _run_packed(self, x: Tensor, pads: list[int]) -> Tensor:
        g = self.geometry
        return torch.ops.dwsep.separable_conv_packed(
            x, self.packed, *self.channels, g.kernel_size, g.stride, pads, g.dilation, *self.options
        )

    def _takes(self, x: Tensor) -> bool:
        """Whether the packed operator can run an input; every other way has its checks elsewhere."""
        return (
            self.packed is not None
            and type(x) is Tensor
            and x.dtype is self.dtype
            and x.is_cpu
            and x.dim() == self.geometry.ndim + 2
            and x.shape[1] == self.in_channels
            and not (x.requires_grad and torch.is_grad_enabled())
            and not torch.is_autocast_enabled("cpu")
            and not _functorch.is_active()
        )

    def _check(self, layer: _DepthwiseSeparableConv, x: Tensor) -> list[int]:
        spatial = x.shape[2:]
        out_spatial = self.geometry.output_size(spatial)
        functional.check_residual(layer.residual or "none", x, *self.channels, out_spatial)
        if len(self.pads) >= 64:
            self.pads.clear()
        pads = self.pads[spatial] = [side for pair in self.geometry.pads(spatial) for side in pair]
        return pads


class PlanMemory:
    """Holds a layer's plan. Not part of its state: copies and pickles of a layer start without one."""

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def __deepcopy__(self, memo: Any) -> PlanMemory:
        return PlanMemory()

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanMemory, ()

    def current(self, layer: _DepthwiseSeparableConv) -> Plan | None:
        """The plan to run the layer with, made anew where it is stale; ``None`` where there can be none.

        A change of a tensor is seen by its version counter; writes through ``parameter.data`` bypass these, so that
        switching between training and evaluation also forgets the plan.
        """
        if torch.is_grad_enabled() and _folding.wants_gradient(layer):
            return None
        if self.plan is None or not self.plan.is_current(layer):
            self.plan = _make(layer)
        return self.plan


def _make(layer: _DepthwiseSeparableConv) -> Plan | None:
    options = _folding.fused_options(layer)
    if options is None:
        return None
    sources: list[_Source] = []
    for module, parameters, buffers in (
        (layer.depthwise, ("weight", "bias"), ()),
        (layer.pointwise, ("weight", "bias"), ()),
        (layer.inner_norm, ("weight", "bias"), ("running_mean", "running_var")),
        (layer.norm, ("weight", "bias"), ("running_mean", "running_var")),
    ):
        if module is None:
            continue
        for holder, names in ((module._parameters, parameters), (module._buffers, buffers)):
            for name in names:
                if name not in holder:
                    return None  # computed at every access, as a parametrisation does
                tensor = holder[name]
                if tensor is None:
                    sources.append(_Source(holder, name, None, 0, 0))
                elif _has_version(tensor):
                    sources.append(_Source(holder, name, tensor, tensor._version, tensor.data_ptr()))
                else:
                    return None
    return Plan(layer, options, sources)


def _has_version(tensor: Tensor) -> bool:
    """Whether a change of the tensor can be told by its version counter: not inside ``vmap``, not when fake."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference() and not _functorch.is_wrapped(tensor)
