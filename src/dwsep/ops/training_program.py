"""``dwsep::training_program`` and its backward: the stages of a stretch of a network as one call in each direction.

Steps work on numbered values: the inputs first, then one value a step. A value is a raw tensor with, where a norm made
it, a scale and a shift per channel, and an activation; who takes it applies them while loading (docs/design/stages.md).
``steps`` is a table of :data:`COLUMNS`, row behind row, -1 where a step has none; ``activations`` holds one number a
value. ``norms`` has three numbers a norm: how its statistics come about (:class:`Statistics`), eps and momentum;
``running`` its running mean and variance, empty where it keeps none.

Returned is what the steps made, a conv's raw output and a norm's scale, shift, mean and 1 / sqrt(variance + eps) among
it. The backward takes that, with empty tensors in place of what :func:`needed` leaves out, and of products with a gate,
which it makes again; it returns the gradients of inputs and parameters, empty where none is wanted.

With ``rounds`` the operands of matrix products may be rounded to bfloat16, as autocast rounds them, where the CPU
multiplies those faster; sums, and all that is kept, stay float32. The references here never round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from dwsep.kernels import stage_reference
from dwsep.ops._library import LIBRARY
from dwsep.ops._stage import channels_last

ops = torch.ops.dwsep
NAME = "training_program"
COLUMNS = (
    *("kind", "source", "target", "operand", "weight", "bias", "norm_weight", "norm_bias", "norm", "depthwise"),
    *("stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_bottom", "pad_left", "pad_right", "option"),
)
ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "gelu")

LIBRARY.define(
    f"{NAME}(Tensor[] inputs, Tensor[] parameters, Tensor(a!)[] running, int[] steps, int[] activations, "
    "float[] norms, bool rounds=False) -> Tensor[]"
)
LIBRARY.define(
    f"{NAME}_backward(Tensor[] grads, Tensor[] inputs, Tensor[] parameters, Tensor[] made, int[] steps, "
    "int[] activations, float[] norms, int[] outputs, bool[] wants, bool rounds=False) -> Tensor[]"
)


class Kind(IntEnum):
    """What a step does."""

    CONV = 0  # a convolution, and the norm behind it if there is one; a linear layer of (N, C)
    NORM = 1  # the norm of a plain value, or an activation alone: the raw tensor stays
    OUTPUT = 2  # the values themselves, plus the operand's if there is one
    POOL = 3  # means over the pixels, (N, C), or, with option 1, (N, C, 1, 1)
    GATE = 4  # sigmoid, or, with option 1, hard sigmoid
    # The values times the operand's, (N, C, 1, 1); option 1: their means are taken, too; 2 and 3: as 0 and 1, and only
    # pointwise convolutions take the product, which they make while loading: an empty tensor stands for it.
    GATED = 5
    PART = 6  # of the convolution in the row before: one more, of the channels behind those it takes


class Statistics(IntEnum):
    """Where a norm's statistics come from."""

    BATCH_AND_UPDATE = 0
    BATCH = 1
    RUNNING = 2


@dataclass
class _Value:
    raw: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    activation: str

    @property
    def load(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, str]:
        return self.raw, self.scale, self.shift, self.activation


class _Step:
    """A row of the table, by name."""

    def __init__(self, row: Sequence[int], norms: Sequence[float]) -> None:
        fields = dict(zip(COLUMNS, row, strict=True))
        self.kind = Kind(fields["kind"])
        self.source, self.target, self.operand = fields["source"], fields["target"], fields["operand"]
        self.weight, self.bias = fields["weight"], fields["bias"]
        self.norm_weight, self.norm_bias, self.norm = fields["norm_weight"], fields["norm_bias"], fields["norm"]
        # 0 for a pointwise convolution, 1 for a depthwise one, 2 for a dense one.
        self.depthwise, self.dense = fields["depthwise"] == 1, fields["depthwise"] == 2
        self.option = fields["option"]
        self.is_loaded = self.kind is Kind.GATED and self.option >= 2
        if self.is_loaded:
            self.option -= 2
        self.geometry = (list(row[10:12]), list(row[14:18]), list(row[12:14])) if fields["depthwise"] else ()
        self.parts = [self]  # the convolutions of one that is mixed
        if self.norm >= 0:
            self.statistics = Statistics(int(norms[3 * self.norm]))
            self.eps, self.momentum = norms[3 * self.norm + 1 : 3 * self.norm + 3]

    @property
    def made(self) -> int:
        """How many tensors it makes."""
        return (self.kind is not Kind.NORM) + 4 * (self.norm >= 0)

    @property
    def own(self) -> list[int]:
        """Its parameters, -1 where it has none."""
        return [self.norm_weight, self.norm_bias, *(index for part in self.parts for index in (part.weight, part.bias))]

    def convolution(self, parameters: Sequence[Tensor]) -> tuple[str, list[Any], Sequence[Sequence[int]]]:
        """The operator's name, its weight or weights with the bias, and its geometry."""
        if len(self.parts) == 1:
            kind = "dense" if self.dense else "depthwise" if self.depthwise else "pointwise"
            return f"{kind}_stage", [parameters[self.weight], _at(parameters, self.bias)], self.geometry
        weights = [parameters[part.weight] for part in self.parts]
        biases = [_at(parameters, part.bias) for part in self.parts]
        joined = None
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            joined = torch.cat([weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in pairs])
        geometry = [[n for part in self.parts if part.depthwise for n in part.geometry[i]] for i in range(3)]
        return "mixed_stage", [weights, joined], geometry


def _steps(table: Sequence[int], norms: Sequence[float]) -> list[_Step]:
    width = len(COLUMNS)
    steps: list[_Step] = []
    for at in range(0, len(table), width):
        step = _Step(table[at : at + width], norms)
        if step.kind is Kind.PART:
            steps[-1].parts.append(step)
        else:
            steps.append(step)
    return steps


def _at(tensors: Sequence[Tensor], index: int) -> Tensor | None:
    return tensors[index] if index >= 0 else None


def needed(
    table: Sequence[int], activations: Sequence[int], norms: Sequence[float], inputs: int
) -> tuple[list[bool], list[bool]]:
    """Which of the inputs, and of the tensors that the steps make, the backward reads."""
    steps = _steps(table, norms)
    normed = {step.target for step in steps if step.norm >= 0}
    read: set[int] = set()  # values whose raw tensor is
    for step in reversed(steps):
        plain = step.source not in normed and activations[step.source] == 0
        if step.kind is not Kind.OUTPUT or not plain:
            read.add(step.source)
        if step.kind is Kind.GATED:
            read.add(step.operand)
    made: list[bool] = []
    for step in steps:
        if step.kind is not Kind.NORM:
            of_batch = step.norm >= 0 and step.statistics is not Statistics.RUNNING
            made.append(step.target in read or of_batch or step.kind is Kind.GATE)
        made += [True] * (4 * (step.norm >= 0))
    return [value in read for value in range(inputs)], made


def _statistics(
    step: _Step, sums: Tensor | None, count: int, parameters: Sequence[Tensor], running: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    weight, bias = _at(parameters, step.norm_weight), _at(parameters, step.norm_bias)
    mean, var = running[2 * step.norm], running[2 * step.norm + 1]
    if step.statistics is Statistics.RUNNING:
        return stage_reference.running_statistics(mean, var, weight, bias, step.eps)
    updated = (mean, var) if step.statistics is Statistics.BATCH_AND_UPDATE else (None, None)
    assert sums is not None
    return ops.stage_statistics(sums, count, weight, bias, step.eps, step.momentum, *updated)


def _with_pixel(x: Tensor) -> Tensor:
    """A linear layer's (N, C) or (K, C) as a pointwise convolution of one pixel has it."""
    return x[:, :, None, None]


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _forward(
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    running: Sequence[Tensor],
    steps: Sequence[int],
    activations: Sequence[int],
    norms: Sequence[float],
    rounds: bool = False,
) -> list[Tensor]:
    values: list[_Value] = [
        _Value(_at(inputs, i) if i < len(inputs) else None, None, None, ACTIVATIONS[number])
        for i, number in enumerate(activations)
    ]
    made: list[Tensor] = []
    for step in _steps(steps, norms):
        source, target = values[step.source], values[step.target]
        raw = source.raw
        assert raw is not None
        sums = None
        if step.kind is Kind.CONV:
            name, weights, geometry = step.convolution(parameters)
            if raw.dim() == 2:
                y, _ = ops.pointwise_stage(_with_pixel(raw), *source.load[1:], _with_pixel(weights[0]), weights[1])
                target.raw = y.flatten(1)
            else:
                target.raw, sums = getattr(ops, name)(*source.load, *weights, *geometry)
        elif step.kind is Kind.NORM:
            target.raw = raw
            if step.norm >= 0 and step.statistics is not Statistics.RUNNING:
                sums = ops.stage_sums(raw)
        elif step.kind is Kind.OUTPUT:
            residual = values[step.operand].raw if step.operand >= 0 else None
            target.raw = ops.stage_output(*source.load, residual)
        elif step.kind is Kind.POOL:
            means = ops.stage_pool(*source.load)
            target.raw = means[:, :, None, None] if step.option else means
        elif step.kind is Kind.GATE:
            target.raw = torch.nn.functional.hardsigmoid(raw) if step.option else torch.sigmoid(raw)
        else:
            gate = values[step.operand].raw
            assert gate is not None
            target.raw = ops.stage_gate(*source.load, gate.flatten(1))
        assert target.raw is not None
        if step.kind is not Kind.NORM:
            made.append(target.raw.new_empty(0) if step.is_loaded else target.raw)
        if step.norm >= 0:
            found = _statistics(step, sums, _pixels(target.raw), parameters, running)
            target.scale, target.shift = found[:2]
            made += found
    return made


class _Gradients:
    """Of each value: of its raw tensor, and, float64 (2, C), of scale and shift."""

    def __init__(self, count: int) -> None:
        self.raw: list[Tensor | None] = [None] * count
        self.affine: list[Tensor | None] = [None] * count

    def add(self, value: int, raw: Tensor | None, affine: Tensor | None = None) -> None:
        for place, more in ((self.raw, raw), (self.affine, affine)):
            before = place[value]
            if more is not None and more.numel() > 0:
                place[value] = more if before is None else before + more


def _requires(steps: Sequence[_Step], inputs: int, values: int, wants: Sequence[bool]) -> list[bool]:
    """Which values depend on something whose gradient is wanted."""
    requires = [*wants[:inputs], *([False] * (values - inputs))]
    for step in steps:
        requires[step.target] = (
            requires[step.source]
            or (step.operand >= 0 and requires[step.operand])
            or any(index >= 0 and wants[inputs + index] for index in step.own)
        )
    return requires


def _backward(
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    made: Sequence[Tensor],
    steps: Sequence[int],
    activations: Sequence[int],
    norms: Sequence[float],
    outputs: Sequence[int],
    wants: Sequence[bool],
    rounds: bool = False,
) -> list[Tensor]:
    read = _steps(steps, norms)
    values = [_Value(_at(inputs, i) if i < len(inputs) else None, None, None, ACTIVATIONS[n])
              for i, n in enumerate(activations)]  # fmt: skip
    place, places = 0, []
    for step in read:
        target = values[step.target]
        target.raw = values[step.source].raw if step.kind is Kind.NORM else made[place]
        if step.kind is Kind.GATED and target.raw is not None and target.raw.numel() == 0:  # was not kept
            gate = values[step.operand].raw
            assert gate is not None
            target.raw = ops.stage_gate(*values[step.source].load, gate.flatten(1))
        if step.norm >= 0:
            target.scale, target.shift = made[place + step.made - 4 : place + step.made - 2]
        places.append(place)
        place += step.made
    requires = _requires(read, len(inputs), len(values), wants)
    found = _Gradients(len(values))
    of_parameters: list[Tensor | None] = [None] * len(parameters)

    def give(index: int, grad: Tensor | None) -> None:
        if index >= 0 and wants[len(inputs) + index] and grad is not None and grad.numel() > 0:
            before = of_parameters[index]
            of_parameters[index] = grad if before is None else before + grad

    for value, grad in zip(outputs, grads, strict=True):
        found.add(value, channels_last(grad) if grad.dim() == 4 else grad)
    products: dict[int, tuple[Tensor, Tensor]] = {}
    for step, place in zip(reversed(read), reversed(places), strict=True):
        grad, affine = found.raw[step.target], found.affine[step.target]
        source = values[step.source]
        if step.kind is Kind.POOL:
            grad = None if grad is None else grad.flatten(1)
            product = products.pop(step.source, (None, None))
            if requires[step.source] and (grad is not None or product[0] is not None):
                found.add(step.source, *ops.stage_squeeze_backward(*product, grad, *source.load))
            continue
        if (grad is None and affine is None) or not requires[step.target]:
            continue
        correction = None
        if step.norm >= 0 and affine is not None:
            mean, invstd = made[place + step.made - 2 : place + step.made]
            raw = values[step.target].raw
            like = grad if grad is not None else raw
            assert like is not None
            weight = _at(parameters, step.norm_weight)
            correction, of_weight, of_bias = ops.stage_correction(affine, mean, invstd, weight, _pixels(like))
            give(step.norm_weight, of_weight)
            give(step.norm_bias, of_bias)
            if step.statistics is Statistics.RUNNING:
                correction = None
        if grad is None:
            if correction is None:
                continue
            grad = torch.zeros_like(values[step.target].raw)  # type: ignore[arg-type]
        if step.kind is Kind.CONV:
            weight_wanted = any(i >= 0 and wants[len(inputs) + i] for i in step.own[2:])
            mask = [requires[step.source], weight_wanted]
            if any(mask):
                name, (weights, bias), geometry = step.convolution(parameters)
                y = grad if correction is None else values[step.target].raw
                assert source.raw is not None
                taken, flat = source.raw, source.raw.dim() == 2
                if flat:
                    grad, y, taken, weights = (
                        _with_pixel(grad),
                        _with_pixel(grad),
                        _with_pixel(taken),
                        _with_pixel(weights),
                    )
                of_x, of_affine, of_weights, of_bias = getattr(ops, f"{name}_backward")(
                    grad, y, correction, taken, *source.load[1:], weights, bias is not None, *geometry, mask
                )
                if flat:
                    of_x, of_weights = (of.flatten(1) if of.dim() == 4 else of for of in (of_x, of_weights))
                found.add(step.source, of_x, of_affine)
                if weight_wanted:
                    each = of_weights if len(step.parts) > 1 else [of_weights]
                    sizes = [weight.shape[0] for weight in each]
                    biases = [None] * len(sizes) if bias is None else of_bias.split(sizes)
                    for part, of_weight, of_part in zip(step.parts, each, biases, strict=True):
                        give(part.weight, of_weight)
                        give(part.bias, of_part)
        elif step.kind is Kind.NORM:
            if requires[step.source]:
                found.add(
                    step.source, grad if correction is None else ops.stage_corrected(grad, source.raw, correction)
                )
        elif step.kind is Kind.OUTPUT:
            if requires[step.source]:
                plain = source.scale is None and source.activation == "none"
                found.add(step.source, *((grad,) if plain else ops.stage_output_backward(grad, *source.load)))
            if step.operand >= 0 and requires[step.operand]:
                found.add(step.operand, grad)
        elif step.kind is Kind.GATE:
            y, x = values[step.target].raw, source.raw
            assert y is not None
            assert x is not None
            inside = (x > -3) & (x < 3)
            found.add(step.source, torch.where(inside, grad / 6, 0.0) if step.option else grad * y * (1 - y))
        else:
            gate = values[step.operand].raw
            assert gate is not None
            if requires[step.operand]:
                found.add(step.operand, ops.stage_gate_gradient(grad, *source.load).reshape(gate.shape))
            if requires[step.source]:
                if step.option and step.source not in products:
                    products[step.source] = (grad, gate.flatten(1))
                else:
                    of_x = ops.stage_squeeze_backward(grad, gate.flatten(1), None, *source.load)
                    found.add(step.source, *of_x)
    results = [*found.raw[: len(inputs)], *of_parameters]
    # Outputs share memory neither with each other nor with what was given.
    taken = {tensor.untyped_storage()._cdata for tensor in (*grads, *inputs, *parameters, *made)}
    owned: list[Tensor] = []
    for tensor, wanted in zip(results, wants, strict=True):
        if tensor is None or not wanted:
            tensor = inputs[0].new_empty(0)
        elif tensor.untyped_storage()._cdata in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage()._cdata)
        owned.append(tensor)
    return owned


LIBRARY.impl(NAME, _forward, "CompositeExplicitAutograd")
LIBRARY.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(f"dwsep::{NAME}", _forward, lib=LIBRARY)
torch.library.register_fake(f"dwsep::{NAME}_backward", _backward, lib=LIBRARY)
