"""The lines of a report: a layer, or several that run as one, with what they cost and how long they took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dwsep.analysis._measure import Measured
from dwsep.analysis._receptive import Field
from dwsep.analysis._units import Unit
from dwsep.analysis.ceilings import Ceilings
from dwsep.analysis.cost import LayerCost
from dwsep.analysis.latency import Latency

_ELEMENT_BYTES = 4  # accelerated networks are float32
_LOADED = {"norm", "activation", "elementwise"}  # the latter counts a norm's batches


@dataclass(frozen=True)
class Row:
    """One line: what ran as one.

    Attributes:
        name: Of the layer; of layers that run as one, of the first and the last with multiply-adds.
        kind: As :attr:`LayerCost.kind`; for fused layers those of the convolutions, joined by " + ".
        layers: Names of all its layers.
        fused: Whether it is more than one layer of the network, run as one.
        input_shape: Shape of the first layer's input.
        output_shape: Shape of the last layer's result.
        kernel_size: Of the convolution with the largest kernel.
        dilation: Likewise.
        macs: Multiply-adds, of forward and backward where a training step was analysed.
        parameters: Weights and biases.
        bytes: Bytes read and written; of fused layers what they cannot do without.
        saved_bytes: Saved for the backward by eager PyTorch; None at inference.
        saved_bytes_fused: Saved for the backward by accelerated stages; None at inference.
        receptive_field: Of its result.
        dense_macs: Multiply-adds of the dense layers that its depthwise ones stand in for, or None without any.
        reduction: ``dense_macs`` over those of the depthwise layers and their partners.
        latency: Seconds; None where nothing was timed.
        floor: Seconds below which it cannot get on this machine; None where its peak is unknown.
        bound: "arithmetic" or "memory", whichever takes longer; None likewise.
        advice: What is measurably wrong, each with its figures.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    fused: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    macs: int
    parameters: int
    bytes: int
    saved_bytes: int | None = None
    saved_bytes_fused: int | None = None
    receptive_field: Field | None = None
    dense_macs: int | None = None
    reduction: float | None = None
    latency: Latency | None = None
    floor: float | None = None
    bound: str | None = None
    advice: tuple[str, ...] = ()

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte, two to a multiply-add."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0

    @property
    def share(self) -> float | None:
        """Its floor over its time: 1 is as fast as this machine can."""
        if self.latency is None or self.floor is None or not self.latency.median:
            return None
        return self.floor / self.latency.median

    def block(self, depth: int = 2) -> str:
        """The first parts of its name, "blocks.1" for "blocks.1.0.conv_dw"."""
        name = self.name.partition(" ")[0].partition(":")[0]
        parts = name.split(".")
        return ".".join(parts[:depth]) if len(parts) > 1 else name


def rows_without_times(layers: Sequence[LayerCost], training: bool) -> list[Row]:
    """A row for each layer."""
    return [_row(Unit([number]), layers, training, None) for number in range(len(layers))]


def rows_of(
    layers: Sequence[LayerCost], measured: Measured, training: bool, ceilings: Ceilings | None, dtype: str
) -> list[Row]:
    """A row for each part that was timed and did some layer's work."""
    rows = []
    for unit, latency in zip(measured.units, measured.times, strict=True):
        if not unit.layers:
            continue
        row = _row(unit, layers, training, latency)
        if ceilings is not None:
            arithmetic = ceilings.arithmetic_seconds(row.macs, dtype)
            memory = ceilings.memory_seconds(row.bytes)
            bound = "arithmetic" if arithmetic >= memory else "memory"
            row = replace(row, floor=max(arithmetic, memory), bound=bound)
        rows.append(row)
    return rows


def _row(unit: Unit, layers: Sequence[LayerCost], training: bool, latency: Latency | None) -> Row:
    own = [layers[number] for number in unit.layers]
    counted = [layer for layer in own if layer.macs] or own
    # a step may hold the depthwise layer of one pair and the pointwise one of another, but no pair in part
    twins = [(layer, layer.dense_twin) for layer in own if layer.dense_twin is not None]
    names = {layer.name for layer in own}
    pairs = [
        (twin, layer.macs + next(other.macs for other in layers if other.name == twin.pointwise))
        for layer, twin in twins
        if unit.step is None or twin.pointwise in names
    ]
    dense = sum(twin.macs for twin, _ in pairs) if pairs else None
    widest = max(own, key=lambda layer: math.prod(layer.kernel_size or (0,)))
    fused = len(counted) > 1 or (unit.step is not None and len(own) > 1)
    return Row(
        name=_name(counted),
        kind=_kind(unit, counted),
        layers=tuple(layer.name for layer in own),
        fused=fused,
        input_shape=own[0].input_shape,
        output_shape=own[-1].output_shape,
        kernel_size=widest.kernel_size,
        dilation=widest.dilation,
        macs=sum((layer.training_macs or 0) if training else layer.macs for layer in own),
        parameters=sum(layer.parameters for layer in own),
        bytes=_bytes(unit, own, training),
        saved_bytes=sum(layer.saved_bytes or 0 for layer in own) if training else None,
        saved_bytes_fused=sum(layer.saved_bytes_fused or 0 for layer in own) if training else None,
        receptive_field=own[-1].receptive_field,
        dense_macs=dense,
        reduction=None if dense is None else dense / sum(macs for _, macs in pairs),
        latency=latency,
    )


def _name(layers: Sequence[LayerCost]) -> str:
    """One layer's name, or the first's and the last's own part: "blocks.1.0.conv_pw .. conv_pwl"."""
    first, last = layers[0].name, layers[-1].name
    if first == last:
        return first
    common = first.rpartition(".")[0]
    short = last.removeprefix(f"{common}.") if common else last
    return f"{first} .. {short}"


def _kind(unit: Unit, counted: Sequence[LayerCost]) -> str:
    if unit.step is not None and unit.step.label:
        return unit.step.label
    kinds = [layer.kind for layer in counted]
    kinds = [kind for kind in kinds if kind != "elementwise"] or kinds  # counting a norm's batches is not worth a word
    if unit.mark is not None and sorted(kinds) == ["depthwise", "pointwise"]:
        return "separable"
    return kinds[0] if len(set(kinds)) == 1 else " + ".join(dict.fromkeys(kinds))


def _bytes(unit: Unit, own: Sequence[LayerCost], training: bool) -> int:
    """What is read and written: of each layer, or of several that run as one, without what stays between them."""
    weights = _ELEMENT_BYTES * sum(layer.parameters for layer in own)
    if unit.step is not None and not training and unit.step.elements is not None:
        return _ELEMENT_BYTES * unit.step.elements + weights
    convolutions = [layer for layer in own if layer.is_convolution]
    if training and unit.step is not None and convolutions:
        # forward: input and output; backward: both again and their gradients, of which one is read and one written
        source, result = math.prod(convolutions[0].input_shape), math.prod(convolutions[-1].output_shape)
        return 3 * _ELEMENT_BYTES * (source + result) + 3 * weights
    if training and unit.step is not None and {layer.kind for layer in own} <= _LOADED:
        # whoever takes it computes it while loading: it is read for its sums, and corrected in the backward
        return 4 * _ELEMENT_BYTES * max(math.prod(layer.output_shape) for layer in own) + 3 * weights
    together = unit.mark is not None and len(convolutions) > 1 and not training
    if together:  # a separable layer of this package, in one operator
        size = convolutions[-1].bytes_written // (math.prod(convolutions[-1].output_shape) or 1)
        elements = math.prod(own[0].input_shape) + math.prod(own[-1].output_shape)
        return size * (elements + sum(layer.parameters for layer in own))
    if training:
        return sum(layer.training_bytes or 0 for layer in own)
    return sum(layer.bytes for layer in own)
