"""What is measurably wrong with a layer: a small experiment for each suspicion, and a line where it confirms it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dwsep.analysis._rows import Row
from dwsep.analysis.cost import LayerCost

_SECONDS = 0.04  # of an experiment
_MOST_ROWS = 12  # the slowest
_PAYS = 0.85  # of the time, from which on another way is worth a line
_LANES = 16  # channels that a vector of AVX-512 holds
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Promise:
    """A separable layer's saving in multiply-adds, and in time.

    Attributes:
        name: Of the depthwise layer.
        reduction: Multiply-adds of the dense convolution in its place over its own and its pointwise partner's.
        seconds: Of both, and of the norm and activation between them.
        dense_seconds: Of the dense convolution alone, measured on the same shapes, in the faster layout.
    """

    name: str
    reduction: float
    seconds: float
    dense_seconds: float

    @property
    def speedup(self) -> float:
        """How much faster than the dense convolution it is."""
        return self.dense_seconds / self.seconds


def promises_of(
    rows: Sequence[Row], layers: Sequence[LayerCost], *, training: bool, most: int = 24
) -> tuple[Promise, ...]:
    """Measures the dense twins of the separable layers whose own time is known, of the slowest where they are many."""
    found = []
    for row in rows:
        own = [layer for layer in layers if layer.name in row.layers and layer.dense_twin is not None]
        if len(own) != 1 or row.latency is None or (row.fused and row.kind != "separable"):
            continue
        layer = own[0]
        seconds = _pair_seconds(rows, layers, layer)
        if seconds is not None:
            found.append((seconds, layer))
    found.sort(key=lambda entry: -entry[0])
    return tuple(
        Promise(layer.name, layer.dense_twin.reduction, seconds, _dense_seconds(layer, layers, training))
        for seconds, layer in found[:most]
        if layer.dense_twin is not None
    )


def _pair_seconds(rows: Sequence[Row], layers: Sequence[LayerCost], depthwise: LayerCost) -> float | None:
    assert depthwise.dense_twin is not None
    start = next(i for i, layer in enumerate(layers) if layer is depthwise)
    names = {depthwise.name, depthwise.dense_twin.pointwise}
    for layer in layers[start + 1 :]:
        if layer.kind not in ("norm", "activation"):
            break
        names.add(layer.name)
    total = 0.0
    for row in rows:
        if names & set(row.layers):
            if not set(row.layers) <= names and not row.fused:
                return None
            total += row.latency.median if row.latency is not None else 0.0
    return total or None


def _dense_seconds(layer: LayerCost, layers: Sequence[LayerCost], training: bool) -> float:
    assert layer.dense_twin is not None
    ndim = len(layer.kernel_size)
    weights = layer.dense_twin.parameters // math.prod(layer.kernel_size)
    channels = layer.input_shape[1]
    geometry = replace(layer, groups=1)
    weight = torch.randn(weights // channels, channels, *layer.kernel_size)
    times = [_conv_seconds(geometry, weight, training, layout) for layout in (False, True)[: 1 + (ndim == 2)]]
    return min(times)


def advise(rows: Sequence[Row], layers: Sequence[LayerCost], promises: Sequence[Promise], training: bool) -> list[Row]:
    """Adds a line to each row, of the slowest, where something is measurably wrong."""
    slowest = sorted(rows, key=lambda row: -(row.latency.median if row.latency else 0.0))[:_MOST_ROWS]
    by_name = {layer.name: layer for layer in layers}
    folding = _foldable(layers)
    promised = {promise.name: promise for promise in promises}
    result = []
    for row in rows:
        lines = []
        if any(row is one for one in slowest) and not row.fused:
            lines += [] if training else _unfolded(row, folding)
            lines += _experiments(row, by_name, training)
        lines += [line for name in row.layers if name in promised for line in _unpaid(promised[name])]
        result.append(replace(row, advice=(*row.advice, *lines)) if lines else row)
    return result


def _experiments(row: Row, by_name: Mapping[str, LayerCost], training: bool) -> list[str]:
    layer = next((by_name[name] for name in row.layers if by_name[name].is_convolution), None)
    if layer is None:
        return []
    if layer.kind not in ("depthwise", "pointwise", "dense", "grouped") or len(layer.kernel_size) != 2:
        return []
    here = _conv_seconds(layer, _weight_of(layer), training, layer.channels_last)
    lines = []
    for check in (_layout, _dilation, _channels):
        lines += check(layer, here, training)
    return lines


def _foldable(layers: Sequence[LayerCost]) -> set[str]:
    """The batch norms that take what a convolution has just made."""
    return {
        norm.name
        for before, norm in itertools.pairwise(layers)
        if norm.foldable and before.is_convolution and before.output_shape == norm.input_shape
    }


def _unfolded(row: Row, folding: set[str]) -> list[str]:
    if row.name not in folding or row.latency is None or len(row.input_shape) != 4:
        return []
    return [
        f"the norm takes {_ms(row.latency.median)} of its own and moves {row.bytes / 1e6:.3g} MB: folded into the "
        "convolution before it (dwsep.accelerate_) it takes neither"
    ]


def _layout(layer: LayerCost, here: float, training: bool) -> list[str]:
    if layer.channels_last or min(layer.input_shape[1], layer.output_shape[1]) < 2:
        return []
    other = _conv_seconds(layer, _weight_of(layer), training, True)
    if other > _PAYS * here:
        return []
    return [f"in NCHW it takes {_ms(here)} alone, in channels last {_ms(other)}"]


def _dilation(layer: LayerCost, here: float, training: bool) -> list[str]:
    if layer.kind != "depthwise" or set(layer.dilation) == {1}:
        return []
    undilated = replace(layer, dilation=(1,) * len(layer.dilation))
    other = _conv_seconds(undilated, _weight_of(layer), training, layer.channels_last)
    if other > _PAYS * here:
        return []
    return [f"dilation {max(layer.dilation)} takes {_ms(here)} alone, dilation 1 {_ms(other)}: a slow path"]


def _channels(layer: LayerCost, here: float, training: bool) -> list[str]:
    channels, outputs = layer.input_shape[1], layer.output_shape[1]
    if channels < 8 or layer.groups not in (1, channels) or (channels % 8 == 0 and outputs % 8 == 0):
        return []
    more, further = (-(-count // _LANES) * _LANES for count in (channels, outputs))
    wide = replace(
        layer,
        input_shape=(layer.input_shape[0], more, *layer.input_shape[2:]),
        groups=more if layer.groups > 1 else 1,
    )
    weight = torch.randn(further if layer.groups == 1 else more, 1 if layer.groups > 1 else more, *layer.kernel_size)
    other = _conv_seconds(wide, weight, training, layer.channels_last)
    if other > _PAYS * here:
        return []
    return [f"{channels} -> {outputs} channels take {_ms(here)} alone, {more} -> {further} only {_ms(other)}"]


def _unpaid(promise: Promise) -> list[str]:
    if promise.speedup >= 1:
        return []
    return [
        f"with its pointwise partner and what lies between them it takes {_ms(promise.seconds)}, where the dense "
        f"convolution in their place takes {_ms(promise.dense_seconds)} for {promise.reduction:.1f} times the macs"
    ]


def _weight_of(layer: LayerCost) -> Tensor:
    channels, outputs = layer.input_shape[1], layer.output_shape[1]
    return torch.randn(outputs, channels // layer.groups, *layer.kernel_size)


def _conv_seconds(layer: LayerCost, weight: Tensor, training: bool, channels_last: bool) -> float:
    """Seconds of PyTorch's convolution on a layer's shapes, with the backward where ``training``."""
    ndim = len(layer.kernel_size)
    spans = zip(layer.kernel_size, layer.dilation)
    # Of TensorFlow's padding and of a (low, high) pair the experiments take the symmetric part.
    padding = [d * (k - 1) // 2 for k, d in spans]
    x = torch.randn(layer.input_shape if len(layer.input_shape) == ndim + 2 else (1, *layer.input_shape))
    if channels_last and ndim == 2:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    args = ([*layer.stride], padding, [*layer.dilation])
    with torch.no_grad():
        out = _CONV[ndim](x, weight, None, *args, layer.groups)
        grad = torch.ones_like(out)

        def call() -> None:
            _CONV[ndim](x, weight, None, *args, layer.groups)
            if training:
                rest = (False, [0] * ndim, layer.groups, [True, True, False])
                torch.ops.aten.convolution_backward(grad, x, weight, None, *args, *rest)

        return _median(call)


def _median(call: Callable[[], None]) -> float:
    call()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        call()
        samples.append(time.perf_counter() - before)
    return sorted(samples)[len(samples) // 2]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
