"""A segment's table for ``dwsep::training_program``, and the node of autograd that runs it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from dwsep.accelerate import _modules
from dwsep.accelerate._program import Call, Product, Stage, inputs_of
from dwsep.accelerate._stages import BatchNorm, count_batches
from dwsep.ops.training_program import ACTIVATIONS, COLUMNS, Kind, Statistics, needed

if TYPE_CHECKING:
    from dwsep.accelerate._segments import Segment

Shape = tuple[int, ...]
_GATES = ("sigmoid", "hardsigmoid")
_MOST_PIXELS_MADE_AGAIN = 64


class Lowered:
    """A segment's table for inputs of known shapes."""

    def __init__(self, segment: Segment, shapes: Sequence[Shape]) -> None:
        self.rows: list[list[int]] = []
        self.activations: list[int] = []
        self.shapes: list[Shape] = []
        self.places: list[tuple[nn.Module, str]] = []  # of the parameters
        self.norms: list[nn.BatchNorm2d] = []
        self.counts: list[Shape] = []  # of each norm's tensor
        self.convs: list[tuple[nn.Conv2d | nn.Linear, Any]] = []
        self._pending: dict[int, int] = {}
        self._plain: dict[int, int] = {}
        self._normed: set[int] = set()
        self._made = 0
        self._at: dict[int, int] = {}  # where a value is among the tensors made
        for value, shape in zip(segment.inputs, shapes, strict=True):
            self._plain[value] = self._value(shape)
        self.inputs = len(shapes)
        pooled = {step.args[0] for step in segment.steps if isinstance(step, Call) and step.pools is not None}
        for step in segment.steps:
            if isinstance(step, Stage):
                self._stage(step)
            elif isinstance(step, Product):
                self._product(step, pooled)
            else:
                self._call(step)
        outputs = [self._tensor(value) for value in segment.outputs]
        self.outputs = outputs
        self.output_places = [self._at[value] for value in outputs]
        if len(set(outputs)) != len(outputs):
            raise NotImplementedError("two results are one tensor")
        self.absent = [_parameter(module, name) is None for module, name in self.places]
        present = itertools.count()
        indices = [-1 if absent else next(present) for absent in self.absent]
        for row in self.rows:
            row[4:8] = [indices[place] if place >= 0 else -1 for place in row[4:8]]
            if row[0] == Kind.GATED and self._is_loaded(row[2]):
                row[-1] += 2
        self.steps = [number for row in self.rows for number in row]
        self.needs: dict[tuple[float, ...], tuple[list[bool], list[bool]]] = {}
        # Products with a gate which the backward makes again: of small images that takes next to no time.
        self.made_again = [
            self._at[row[2]]
            for row in self.rows
            if row[0] == Kind.GATED and row[-1] < 2 and math.prod(self.shapes[row[2]][2:]) <= _MOST_PIXELS_MADE_AGAIN
        ]

    def is_current(self) -> bool:
        """Whether the modules are as they were: shapes of convolutions, parameters that are missing."""
        if any(_form(conv) != form for conv, form in self.convs):
            return False
        return [_parameter(module, name) is None for module, name in self.places] == self.absent

    def _is_loaded(self, product: int) -> bool:
        """Whether pointwise convolutions alone take a product with a gate: they make it while loading."""
        takers = [row for row in self.rows if row[1] == product or row[3] == product]
        pointwise = [row[0] == Kind.CONV and row[COLUMNS.index("depthwise")] == 0 for row in takers]
        return product not in self.outputs and bool(pointwise) and all(pointwise)

    def _value(self, shape: Shape, activation: str = "none") -> int:
        self.activations.append(ACTIVATIONS.index(activation))
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1

    def _row(self, kind: Kind, source: int, shape: Shape, *, activation: str = "none", **fields: Any) -> int:
        target = self._value(shape, activation)
        self.rows.append(_record(kind, source, target, **fields))
        if kind is not Kind.NORM:
            self._at[target] = self._made
            self._made += 1
        if fields.get("norm", -1) >= 0:
            self._made += 4
            self._normed.add(target)
        return target

    def _parameter(self, module: nn.Module, name: str) -> int:
        self.places.append((module, name))
        return len(self.places) - 1

    def _is_plain(self, value: int) -> bool:
        return value not in self._normed and self.activations[value] == 0

    def _source(self, value: int) -> int:
        return self._pending[value] if value in self._pending else self._plain[value]

    def _tensor(self, value: int) -> int:
        if value not in self._plain:
            pending = self._pending[value]
            if self._is_plain(pending):
                self._plain[value] = pending
            else:
                self._plain[value] = self._row(Kind.OUTPUT, pending, self.shapes[pending])
        return self._plain[value]

    def _stage(self, stage: Stage) -> None:
        convs, norm = stage.convs, stage.norm
        source = self._source(stage.input) if convs else self._tensor(stage.input)
        shape = self.shapes[source]
        if len(shape) != 4:
            raise NotImplementedError("not a tensor (N, C, H, W)")
        fields: dict[str, Any] = {"activation": stage.activation}
        parts: list[dict[str, Any]] = []
        if convs:
            if shape[1] != sum(conv.in_channels for conv in convs):
                raise NotImplementedError("the convolution takes other channels")
            outs = [self._convolution(conv, shape[2:], parts) for conv in convs]
            if len(set(outs)) > 1:
                raise NotImplementedError("the parts of a convolution differ in size")
            fields |= parts[0]
            shape = (shape[0], sum(conv.out_channels for conv in convs), *outs[0])
        if norm is not None:
            if shape[1] != norm.num_features:
                raise NotImplementedError("the norm takes other channels")
            fields["norm_weight"], fields["norm_bias"] = self._parameter(norm, "weight"), self._parameter(norm, "bias")
            fields["norm"] = len(self.norms)
            self.norms.append(norm)
            self.counts.append(shape)
        target = self._row(Kind.CONV if convs else Kind.NORM, source, shape, **fields)
        self.rows += [_record(Kind.PART, source, target, **part) for part in parts[1:]]
        self._pending[stage.output] = target
        if stage.residual is not None:
            operand = self._tensor(stage.residual)
            if self.shapes[operand] != shape:
                raise NotImplementedError("a sum of tensors of different shapes")
            self._plain[stage.output] = self._row(Kind.OUTPUT, target, shape, operand=operand)
            del self._pending[stage.output]

    def _convolution(self, conv: nn.Conv2d, spatial: Sequence[int], parts: list[dict[str, Any]]) -> Shape:
        """Add a convolution's fields of the table to ``parts``; its output's size."""
        fields: dict[str, Any] = {"weight": self._parameter(conv, "weight"), "bias": self._parameter(conv, "bias")}
        self.convs.append((conv, _form(conv)))
        parts.append(fields)
        fields["depthwise"] = 0 if _modules.is_pointwise(conv) else 1 if _modules.is_depthwise(conv) else 2
        if not fields["depthwise"]:
            return tuple(spatial)
        geometry = _modules.geometry_of(conv)
        pads = [side for pair in geometry.pads(spatial) for side in pair]
        fields["geometry"] = [*geometry.stride, *geometry.dilation, *pads]
        return tuple(geometry.output_size(spatial))

    def _product(self, step: Product, pooled: set[int]) -> None:
        # Of two that are a pixel each, what was pooled is gated: the means of a pixel made the other.
        both = sorted(((step.left, step.right), (step.right, step.left)), key=lambda pair: pair[0] not in pooled)
        for value, gate in both:
            source, operand = self._source(value), self._source(gate)
            shape, by = self.shapes[source], self.shapes[operand]
            if len(shape) == 4 and by == (*shape[:2], 1, 1):
                operand = self._tensor(gate)
                option = int(value in pooled and value in self._pending)
                target = self._row(Kind.GATED, source, shape, operand=operand, option=option)
                self._plain[step.output] = target
                return
        raise NotImplementedError("a product that gates nothing")

    def _call(self, step: Call) -> None:
        value = inputs_of(step)[0]
        if step.pools is not None:
            source = self._source(value)
            shape = self.shapes[source]
            if len(shape) != 4:
                raise NotImplementedError("not a tensor (N, C, H, W)")
            kept = step.pools == "kept"
            shape = (*shape[:2], 1, 1) if kept else shape[:2]
            self._plain[step.output] = self._row(Kind.POOL, source, shape, option=int(kept))
            return
        if step.flattens:
            source = self._source(value)
            shape = self.shapes[source]
            if shape[2:] != (1, 1):
                raise NotImplementedError("more than a pixel")
            self._plain[step.output] = self._row(Kind.POOL, source, shape[:2], option=0)  # the mean of one pixel
            return
        source = self._tensor(value)
        shape = self.shapes[source]
        if step.linear is not None:
            self._plain[step.output] = self._linear(step.linear, source, shape)
            return
        if shape[2:] != (1, 1):
            raise NotImplementedError("an activation of a whole image")
        self._plain[step.output] = self._row(Kind.GATE, source, shape, option=_GATES.index(str(step.gate)))

    def _linear(self, linear: nn.Linear, source: int, shape: Shape) -> int:
        if len(shape) != 2 or shape[1] != linear.in_features:
            raise NotImplementedError("the layer takes other features")
        if linear.weight.dtype is not torch.float32 or not (linear.weight.is_cpu or linear.weight.is_cuda):
            raise NotImplementedError("not float32 on the CPU or a GPU")
        self.convs.append((linear, _form(linear)))
        weight, bias = self._parameter(linear, "weight"), self._parameter(linear, "bias")
        return self._row(Kind.CONV, source, (shape[0], linear.out_features), weight=weight, bias=bias, depthwise=0)

    def run(self, inputs: list[Tensor], rounds: bool) -> tuple[Tensor, ...]:
        """The segment's results, differentiable; running statistics follow. Products may round, or not."""
        parameters = [p for module, name in self.places if (p := _parameter(module, name)) is not None]
        # All of them are checked before the first batch is counted.
        norms = [BatchNorm(norm, shape) for norm, shape in zip(self.norms, self.counts, strict=True)]
        numbers: list[float] = []
        running: list[Tensor] = []
        updated: list[Tensor] = []
        momenta = count_batches(norms)
        for norm, momentum in zip(norms, momenta, strict=True):
            mean, var = norm.mean, norm.var
            kept = [inputs[0].new_empty(0)] * 2 if mean is None or var is None else [mean, var]
            statistics = Statistics.BATCH if norm.of_batch else Statistics.RUNNING
            if norm.updates and mean is not None and var is not None:
                statistics = Statistics.BATCH_AND_UPDATE
                updated += kept
            numbers += [float(statistics), norm.norm.eps, momentum]
            running += kept
        results = _Run.apply(self, running, numbers, rounds, *inputs, *parameters)
        increment_version(updated)  # what caches their values has to see that they are others
        return results


def _record(kind: Kind, source: int, target: int, **fields: Any) -> list[int]:
    geometry = fields.get("geometry") or [1, 1, 1, 1, 0, 0, 0, 0]
    names = ("weight", "bias", "norm_weight", "norm_bias", "norm", "depthwise")
    own = [fields.get(name, -1) for name in names]
    return [kind, source, target, fields.get("operand", -1), *own, *geometry, fields.get("option", -1)]


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    """A module's parameter: as an attribute it takes ten times as long to find."""
    try:
        return module._parameters[name]
    except KeyError:  # one that is computed
        return getattr(module, name)


def _form(conv: nn.Conv2d | nn.Linear) -> Any:
    if isinstance(conv, nn.Linear):
        return conv.in_features, conv.out_features, conv.weight.dtype, conv.weight.device
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, lowered: Lowered, running: list[Tensor], norms: list[float], rounds: bool, *tensors: Tensor
    ) -> Any:
        inputs, parameters = tensors[: lowered.inputs], tensors[lowered.inputs :]
        table = lowered.steps, lowered.activations, norms
        made = torch.ops.dwsep.training_program(inputs, parameters, running, *table, rounds)
        key = tuple(norms[::3])
        if key not in lowered.needs:
            inputs_needed, made_needed = needed(lowered.steps, lowered.activations, norms, lowered.inputs)
            for place in lowered.made_again:
                made_needed[place] = False
            lowered.needs[key] = inputs_needed, made_needed
        inputs_needed, made_needed = lowered.needs[key]
        ctx.set_materialize_grads(False)
        ctx.lowered, ctx.norms, ctx.rounds = lowered, norms, rounds
        kept = [tensor if need else None for tensor, need in zip(inputs, inputs_needed, strict=True)]
        kept_made = [tensor if need else None for tensor, need in zip(made, made_needed, strict=True)]
        ctx.save_for_backward(*kept, *parameters, *kept_made)
        return tuple(made[place] for place in lowered.output_places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        lowered: Lowered = ctx.lowered
        saved = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[4:])
        empty = torch.empty(0)
        saved = [empty if tensor is None else tensor for tensor in saved]
        parameters_end = len(wants)
        found = torch.ops.dwsep.training_program_backward(
            [empty if grad is None else grad for grad in grads],
            saved[: lowered.inputs],
            saved[lowered.inputs : parameters_end],
            saved[parameters_end:],
            lowered.steps,
            lowered.activations,
            ctx.norms,
            lowered.outputs,
            wants,
            ctx.rounds,
        )
        result = [grad if want and grad.numel() > 0 else None for grad, want in zip(found, wants, strict=True)]
        return (None, None, None, None, *result)
