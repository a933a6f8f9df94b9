"""Multiply-adds and parameters of a network by closed formulas, layer by layer.

A convolution does one multiply-add per weight and output position, a transposed one per weight and input position, a
linear layer one per weight and row. Nothing is timed: one forward pass only finds out the shapes, so that tensors on
the "meta" device, which hold no data, do as well as real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dwsep.nn import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_DEPTHWISE = (DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d)
_SEPARABLE = (DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d)


@dataclass(frozen=True)
class LayerCost:
    """Cost of one call of one layer.

    Attributes:
        name: Qualified name of the module, as ``model.named_modules()`` gives it.
        kind: "dense", "pointwise" (1x1, one group), "depthwise" (one group per input channel), "grouped" or "linear".
        macs: Multiply-adds of the call, for the whole batch.
        parameters: Weights and biases of the module.
        output_shape: Shape of the result.
        kernel_size: Extent of the kernel per spatial axis; empty for a linear layer.
        spatial: Whether the layer is, or stands in for, a convolution with a kernel larger than one; see
            :attr:`ModelCost.macs_spatial`.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...] = ()
    spatial: bool = False


@dataclass(frozen=True)
class ModelCost:
    """Cost of one forward pass of a network.

    Attributes:
        parameters: Elements of all parameters of the model, norms included, each shared one counted once.
        layers: One entry per call of a convolution or linear layer, in the order in which they ran.
    """

    parameters: int
    layers: tuple[LayerCost, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of all convolutions and linear layers; norms, activations and pooling are not counted."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_spatial(self) -> int:
        """Multiply-adds of the layers in which a separable network and its dense twin differ.

        Counted are convolutions with a kernel larger than one, and the pointwise convolution that completes a depthwise
        one: the other factor of the same ``DepthwiseSeparableConv``, or in a network written in plain layers the next
        1x1 convolution to run on the depthwise output at the same resolution. Left out are linear layers, all other
        1x1 convolutions, and the stem (the first convolution to run, where it is dense), because both twins share
        them: ``dense.macs_spatial / separable.macs_spatial`` is what the separation saves.
        """
        return sum(layer.macs for layer in self.layers if layer.spatial)

    @property
    def macs_by_kind(self) -> Mapping[str, int]:
        """Multiply-adds summed by the kind of layer."""
        totals: dict[str, int] = {}
        for layer in self.layers:
            totals[layer.kind] = totals.get(layer.kind, 0) + layer.macs
        return totals


def count(model: nn.Module, example_input: Tensor | Sequence[Any]) -> ModelCost:
    """Counts multiply-adds and parameters of every convolution and linear layer that a forward pass calls.

    Layers are found by forward hooks, so work done by bare functional calls (attention products, for one) is not seen.
    The model runs once, in evaluation mode and without gradients; its training flags are put back afterwards.

    Args:
        model: Network to count, on any device.
        example_input: Input of the network, (N, C, H, W) for an image network, or the sequence of its positional
            arguments, on the device of the model. The counts are for this batch: pass N = 1 for the usual figure.

    Returns:
        The cost, with one entry per layer call.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``, or ``example_input`` neither a tensor nor a tuple or list.

    Example:
        >>> import torch
        >>> from dwsep.analysis import count
        >>> cost = count(torch.nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 10))
        >>> cost.macs == 8 * 3 * 3 * 3 * 10 * 10, cost.parameters
        (True, 224)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(example_input, Tensor):
        arguments: tuple[Any, ...] = (example_input,)
    elif isinstance(example_input, (tuple, list)):
        arguments = tuple(example_input)
    else:
        raise TypeError(
            f"example_input must be a tensor, or a tuple or list of positional arguments, got "
            f"{type(example_input).__name__}"
        )

    layers: list[LayerCost] = []
    handles = []

    def add_hook(module: nn.Module, describe: Callable[[Tensor, Tensor], list[LayerCost]]) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            source = args[0] if args else next(iter(kwargs.values()))
            layers.extend(describe(source, output))

        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    try:
        _add_hooks(model, add_hook)
        with _evaluating(model), torch.no_grad():
            model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(parameters=parameters, layers=_mark_spatial(layers))


def _add_hooks(
    model: nn.Module, add_hook: Callable[[nn.Module, Callable[[Tensor, Tensor], list[LayerCost]]], None]
) -> None:
    # A separable layer may run fused, without calling its factors, or unfused: it is counted from its own hook either
    # way, and the factors get none, so that nothing is missed or counted twice.
    factors: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, _SEPARABLE):
            factors.update((module.depthwise, module.pointwise))
    for name, module in model.named_modules():
        if isinstance(module, _SEPARABLE):
            add_hook(module, lambda x, y, name=name, module=module: _separable_costs(name, module, x, y))
        elif module in factors:
            continue
        elif isinstance(module, (*_CONVOLUTIONS, *_DEPTHWISE)):
            add_hook(module, lambda x, y, name=name, module=module: [_convolution_cost(name, module, x, y)])
        elif isinstance(module, nn.Linear):
            add_hook(module, lambda _, y, name=name, module=module: [_linear_cost(name, module, y)])


def _convolution_cost(name: str, module: Any, source: Tensor, output: Tensor) -> LayerCost:
    kernel_size = tuple(module.weight.shape[2:])
    positions = source.shape if isinstance(module, _TRANSPOSED) else output.shape
    return LayerCost(
        name=name,
        kind=_kind(module),
        macs=module.weight.numel() * _batched_positions(positions, len(kernel_size)),
        parameters=_own_parameters(module),
        output_shape=tuple(output.shape),
        kernel_size=kernel_size,
    )


def _separable_costs(name: str, module: Any, source: Tensor, output: Tensor) -> list[LayerCost]:
    prefix = f"{name}." if name else ""
    num_axes = module.depthwise.weight.dim() - 2
    leading = tuple(output.shape[: -num_axes - 1])
    out_spatial, in_spatial = tuple(output.shape[-num_axes:]), tuple(source.shape[-num_axes:])

    def cost(factor: str, kind: str, spatial: tuple[int, ...]) -> LayerCost:
        convolution = getattr(module, factor)
        shape = (*leading, convolution.weight.shape[0], *spatial)
        return LayerCost(
            name=prefix + factor,
            kind=kind,
            macs=convolution.weight.numel() * _batched_positions(shape, num_axes),
            parameters=_own_parameters(convolution),
            output_shape=shape,
            kernel_size=tuple(convolution.weight.shape[2:]),
            spatial=True,
        )

    depthwise = cost("depthwise", "depthwise", out_spatial)
    if module.order == "pointwise_first":
        return [cost("pointwise", "pointwise", in_spatial), depthwise]
    return [depthwise, cost("pointwise", "pointwise", out_spatial)]


def _linear_cost(name: str, module: nn.Linear, output: Tensor) -> LayerCost:
    rows = math.prod(output.shape[:-1])
    return LayerCost(name, "linear", module.weight.numel() * rows, _own_parameters(module), tuple(output.shape))


def _kind(module: Any) -> str:
    if isinstance(module, _DEPTHWISE) or module.groups == module.in_channels > 1:
        return "depthwise"
    if module.groups > 1:
        return "grouped"
    return "pointwise" if math.prod(module.weight.shape[2:]) == 1 else "dense"


def _batched_positions(shape: Sequence[int], num_axes: int) -> int:
    """Spatial positions times batch, of a (N, C, *spatial) or an unbatched (C, *spatial) tensor."""
    return math.prod(shape[-num_axes:]) * math.prod(shape[: -num_axes - 1])


def _own_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _mark_spatial(layers: Sequence[LayerCost]) -> tuple[LayerCost, ...]:
    """Marks what :attr:`ModelCost.macs_spatial` counts in plain layers; separable layers are marked already."""
    marked: list[LayerCost] = []
    waiting: LayerCost | None = None  # a depthwise layer whose pointwise partner has not run yet
    stem_seen = False
    for layer in layers:
        spatial = layer.spatial
        if layer.kind == "pointwise" and not spatial:
            # at another resolution it belongs to something in between, such as squeeze and excitation
            if waiting is not None and layer.output_shape[2:] == waiting.output_shape[2:]:
                spatial, waiting = True, None
        elif layer.kind in ("dense", "grouped", "depthwise") and not spatial:
            is_stem = not stem_seen and layer.kind == "dense"
            spatial = math.prod(layer.kernel_size) > 1 and not is_stem
            waiting = layer if layer.kind == "depthwise" else None
        stem_seen = stem_seen or layer.kind != "linear"
        marked.append(replace(layer, spatial=spatial))
    return tuple(marked)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training  # not module.train(): that would reset the children, which may differ
