"""What a network costs, layer by layer: multiply-adds, parameters, bytes, by closed formulas from the shapes alone.

A convolution does one multiply-add per weight and output position, a transposed one per weight and input position, a
linear layer one per weight and row. Every operator reads its operands once and writes its result once. Nothing is
timed: a pass over the network only finds out the shapes, so that tensors on the "meta" device, which hold no data, do
as well as real ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dwsep.analysis._passes import positional, trace_inference, trace_training
from dwsep.analysis._receptive import Field
from dwsep.analysis._trace import Call, Record
from dwsep.nn import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
)

_DEPTHWISE = (DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d)
_SEPARABLE = (DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d)
_CONVOLUTIONS = ("dense", "grouped", "depthwise", "pointwise", "transposed", "separable")
# By how telling they are of a layer that runs several operators.
_KINDS = ("attention", *_CONVOLUTIONS, "linear", "matmul", "norm", "pooling", "activation", "gate", "resampling")


@dataclass(frozen=True)
class DenseTwin:
    """The dense convolution that a depthwise layer and the pointwise one behind it stand in for.

    Attributes:
        pointwise: Name of the pointwise layer.
        macs: Multiply-adds of the dense convolution: C * K * taps per output position.
        parameters: Its weights, C * K * taps, without a bias.
        reduction: Its multiply-adds over those of the two layers.
    """

    pointwise: str
    macs: int
    parameters: int
    reduction: float


@dataclass(frozen=True)
class LayerCost:
    """Cost of one call of one layer: a module without parts, or an operator that a module with parts calls itself.

    Attributes:
        name: Qualified name of the module, as ``model.named_modules()`` gives it, with ":operator" behind it where the
            module has parts.
        kind: "dense", "pointwise" (1x1, one group), "depthwise" (one group per input channel), "grouped", "transposed",
            "separable" (both factors in one operator), "linear", "matmul", "attention", "norm", "activation",
            "pooling", "gate" (squeeze and excite's product), "elementwise", "resampling", "copy" or "other".
        macs: Multiply-adds of the call, for the whole batch; norms, activations and pooling count none.
        parameters: Weights and biases of the module.
        output_shape: Shape of the result.
        kernel_size: Extent of the kernel per spatial axis; empty where there is none.
        spatial: Whether the layer is, or stands in for, a convolution with a kernel larger than one; see
            :attr:`ModelCost.macs_spatial`.
        input_shape: Shape of the first input.
        stride: Of a convolution, per spatial axis.
        dilation: Of a convolution, per spatial axis.
        groups: Of a convolution.
        bytes_read: Bytes of inputs and parameters, each read once.
        bytes_written: Bytes of the results.
        receptive_field: Elements of the network's input per spatial axis that an element of the result depends on; None
            in place of an axis of which it sees all, and None where that is not defined.
        channels_last: Whether the input lies channels last.
        training_macs: Multiply-adds of forward and backward; None where no training step was looked at.
        training_bytes: Bytes that forward and backward read and write in eager PyTorch; None likewise.
        saved_bytes: Bytes that eager PyTorch saves of this layer's result or for its backward; None likewise.
        saved_bytes_fused: The same where the results of norms and activations are computed again in the backward, as
            an accelerated network does.
        dense_twin: Of a depthwise layer with its pointwise partner.
        foldable: Whether it is a batch norm with running statistics: a convolution before it can take it in.
        calls: The modules the layer ran in, from outermost to innermost, each with a number of the call.
        began: How many calls of modules had begun when it ran.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...] = ()
    spatial: bool = False
    input_shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bytes_read: int = 0
    bytes_written: int = 0
    receptive_field: Field | None = None
    channels_last: bool = False
    training_macs: int | None = None
    training_bytes: int | None = None
    saved_bytes: int | None = None
    saved_bytes_fused: int | None = None
    dense_twin: DenseTwin | None = None
    foldable: bool = False
    calls: tuple[Call, ...] = ()
    began: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte, two to a multiply-add."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution of any kind."""
        return self.kind in _CONVOLUTIONS


@dataclass(frozen=True)
class ModelCost:
    """Cost of one forward pass of a network.

    Attributes:
        parameters: Elements of all parameters of the model, norms included, each shared one counted once.
        layers: One entry per call of a layer, in the order in which they ran.
        calls: All calls of modules, in the order in which they began, each with its number.
    """

    parameters: int
    layers: tuple[LayerCost, ...]
    calls: tuple[Call, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-adds of all convolutions and matrix products; norms, activations and pooling count none."""
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


def count(model: nn.Module, example_inputs: Any) -> ModelCost:
    """Counts multiply-adds and parameters of every convolution and matrix product that a forward pass runs.

    The model runs once, in evaluation mode and without gradients; its training flags are put back afterwards.

    Args:
        model: Network to count, on any device.
        example_inputs: Input of the network, (N, C, H, W) for an image network, or the sequence of its positional
            arguments, on the device of the model. The counts are for this batch: pass N = 1 for the usual figure.

    Returns:
        The cost, with one entry per layer call; layers without multiply-adds are left out.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``, or ``example_inputs`` neither a tensor nor a tuple or list.

    Example:
        >>> import torch
        >>> from dwsep.analysis import count
        >>> cost = count(torch.nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 10))
        >>> cost.macs == 8 * 3 * 3 * 3 * 10 * 10, cost.parameters
        (True, 224)
    """
    cost = analyse(model, example_inputs)
    return replace(cost, layers=tuple(layer for layer in cost.layers if layer.macs))


def analyse(model: nn.Module, example_inputs: Any, *, training: bool = False) -> ModelCost:
    """Finds the cost of every layer, with or without multiply-adds.

    Args:
        model: Network, on any device; its modes, buffers and gradients are left as they are.
        example_inputs: As :func:`count` takes it.
        training: Whether to run a training step, too, and count its backward and what is saved for it. Layers and
            figures are then those of training: a norm in training mode is one.

    Returns:
        The cost, with one entry per layer call.

    Raises:
        TypeError: As :func:`count`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    arguments = positional(example_inputs)
    tracer = trace_training(model, arguments) if training else trace_inference(model, arguments)
    modules = dict(model.named_modules())
    factors: set[nn.Module] = {
        part for m in modules.values() if isinstance(m, _SEPARABLE) for part in (m.depthwise, m.pointwise)
    }
    layers = [_layer(group, modules, factors, training) for group in _grouped(tracer.records, modules)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(parameters=parameters, layers=_mark_spatial(layers), calls=tuple(tracer.all_calls))


def _grouped(records: Iterable[Record], modules: Mapping[str, nn.Module]) -> list[list[Record]]:
    """The records of each call of a module without parts together, all others one by one."""
    groups: list[list[Record]] = []
    for record in records:
        alone = not record.calls or any(True for _ in modules[record.calls[-1][0]].children())
        if groups and not alone and groups[-1][-1].calls == record.calls:
            groups[-1].append(record)
        else:
            groups.append([record])
    return groups


def _layer(group: list[Record], modules: Mapping[str, nn.Module], factors: set[nn.Module], training: bool) -> LayerCost:
    main = min(group, key=lambda r: (-r.macs, _KINDS.index(r.kind) if r.kind in _KINDS else len(_KINDS)))
    name = main.calls[-1][0] if main.calls else ""
    module = modules[name]
    whole = not any(True for _ in module.children())
    macs = sum(record.macs for record in group)
    backward = sum(record.backward_macs for record in group)
    moved = sum(record.read + record.written for record in group)
    depthwise = isinstance(module, _DEPTHWISE) and main.kind in _CONVOLUTIONS
    return LayerCost(
        name=name if whole else f"{name}:{main.op.strip('_').removeprefix('native_')}".lstrip(":"),
        kind="depthwise" if depthwise else main.kind,
        macs=macs,
        parameters=_own_parameters(module) if whole else sum(record.parameters for record in group),
        output_shape=group[-1].output_shape,
        kernel_size=main.details.get("kernel_size", ()),
        spatial=module in factors,
        input_shape=group[0].input_shape,
        stride=main.details.get("stride", ()),
        dilation=main.details.get("dilation", ()),
        groups=main.details.get("groups", 1),
        bytes_read=sum(record.read for record in group),
        bytes_written=sum(record.written for record in group),
        receptive_field=group[-1].receptive_field,
        channels_last=group[0].channels_last,
        training_macs=macs + backward if training else None,
        training_bytes=moved + sum(record.backward_bytes for record in group) if training else None,
        saved_bytes=sum(record.saved for record in group) if training else None,
        saved_bytes_fused=sum(record.saved_fused for record in group) if training else None,
        foldable=isinstance(module, _BatchNorm) and main.kind == "norm" and module.running_mean is not None,
        calls=main.calls,
        began=group[0].began,
    )


def _own_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _mark_spatial(layers: Sequence[LayerCost]) -> tuple[LayerCost, ...]:
    """Pairs depthwise and pointwise layers, and marks what :attr:`ModelCost.macs_spatial` counts."""
    marked: list[LayerCost] = []
    waiting: int | None = None  # a depthwise layer whose pointwise partner has not run yet
    stem_seen = False
    for layer in layers:
        spatial, partner = layer.spatial, None
        if layer.kind == "pointwise":
            # at another resolution it belongs to something in between, such as squeeze and excitation
            if waiting is not None and layer.output_shape[2:] == marked[waiting].output_shape[2:]:
                spatial, partner, waiting = True, waiting, None
        elif layer.kind in ("dense", "grouped", "depthwise", "transposed"):
            is_stem = not stem_seen and layer.kind == "dense"
            spatial = spatial or (math.prod(layer.kernel_size) > 1 and not is_stem)
            waiting = len(marked) if layer.kind == "depthwise" else None
        stem_seen = stem_seen or layer.is_convolution
        marked.append(replace(layer, spatial=spatial))
        if partner is not None:
            marked[partner] = _with_twin(marked[partner], marked[-1], first="depthwise")
        elif _completes(marked):
            marked[-1], waiting = _with_twin(marked[-1], _factor_before(marked), first="pointwise"), None
    return tuple(marked)


def _factor_before(layers: Sequence[LayerCost]) -> LayerCost:
    return next(layer for layer in reversed(layers[:-1]) if layer.is_convolution)


def _completes(layers: Sequence[LayerCost]) -> bool:
    """Whether the last layer is the depthwise factor of a separable one whose pointwise factor came first."""
    last = layers[-1]
    if last.kind != "depthwise" or not any(layer.is_convolution for layer in layers[:-1]):
        return False
    before = _factor_before(layers)
    return before.kind == "pointwise" and before.spatial and before.calls[:-1] == last.calls[:-1] != ()


def _with_twin(depthwise: LayerCost, pointwise: LayerCost, first: str) -> LayerCost:
    """The depthwise layer with the figures of the dense convolution that it and the pointwise one stand in for."""
    taps = math.prod(depthwise.kernel_size)
    source, target = (depthwise, pointwise) if first == "depthwise" else (pointwise, depthwise)
    channels = source.input_shape[1] if len(source.input_shape) > 1 else source.groups
    outputs = target.output_shape[1] if len(target.output_shape) > 1 else channels
    weights = channels * outputs * taps
    ndim = len(depthwise.kernel_size)
    positions = math.prod(depthwise.output_shape[-ndim:]) * math.prod(depthwise.output_shape[: -ndim - 1])
    macs = weights * positions
    reduction = macs / (depthwise.macs + pointwise.macs)
    return replace(depthwise, dense_twin=DenseTwin(pointwise.name, macs, weights, reduction))
