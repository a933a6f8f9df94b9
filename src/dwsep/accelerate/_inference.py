"""A program's inference: norms folded into weights, weights packed, activations and sums where a result is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dwsep import functional
from dwsep.accelerate import _branches, _folding, _modules, _scales
from dwsep.accelerate import _inference_steps as _steps
from dwsep.accelerate._inference_steps import (
    Channels,
    Dense,
    Depthwise,
    Joined,
    Multiplication,
    Other,
    Pointwise,
    Separable,
    Step,
    Unfolded,
)
from dwsep.accelerate._lowering import Lowering
from dwsep.accelerate._native_segment import LINE, NativeSegment, Planned, WholeProgram
from dwsep.accelerate._program import Call, Product, Program, Stage, Value, inputs_of, modules_of, substitute, values_in
from dwsep.ops._layout import is_channels_last

# Runs a step, given its number and what runs it.
Watch = Callable[[int, Callable[[], Any]], Any]
# Modules whose result has the dtype of what they take, under autocast as well.
_KEEPING = (nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ReLU, nn.ReLU6)
# Methods whose result's dtype is not that of what they take.
_CASTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16")
# Input shapes for which native programs are kept.
_MOST_SHAPES = 8


def _separable_ends(program: Program) -> dict[int, Stage]:
    """By position, the depthwise stages that run together with the pointwise stage which alone takes their output."""
    users = program.users()
    producers = {step.output: (index, step) for index, step in enumerate(program.steps)}
    # Parts of larger values, which no separable step writes.
    joined = {value for step in program.steps if isinstance(step, Call) for value in step.joins}
    pairs: dict[int, Stage] = {}
    for position, step in enumerate(program.steps):
        if not isinstance(step, Stage) or step.conv is None or not _modules.is_pointwise(step.conv):
            continue
        index, producer = producers.get(step.input, (-1, None))
        if not isinstance(producer, Stage) or producer.conv is None or producer.residual is not None:
            continue
        alone = users[producer.output] == 1 and _modules.is_depthwise(producer.conv)
        # What a call between them wrote into would be read too late.
        alone = alone and not any(isinstance(between, Call) for between in program.steps[index + 1 : position])
        foldable = _folding.folds(producer.norm) and _folding.folds(step.norm)
        if alone and step.output not in joined and foldable and functional.packs(producer.conv.weight, torch.float32):
            pairs[index] = step
    return pairs


def _product(program: Program, index: int, product: Product) -> Multiplication:
    """The product with what is gated on the left."""
    fresh = {step.output for step in program.steps if isinstance(step, Stage) and step.convs}
    last = {value for value in (product.left, product.right) if program.last_use.get(value) == index}
    if product.right in fresh and product.left not in fresh:
        product = Product(product.right, product.left, product.output)
    lookers = {value for s in program.steps if isinstance(s, Call) and not s.looks for value in inputs_of(s)}
    own = product.left in fresh & last and product.left not in lookers and product.left != product.right
    return Multiplication(product, own)


def _called(call: Call, native: bool, bfloat16: bool) -> Step:
    if call.joins:
        return Joined(call.joins)
    if call.cuts is not None:
        return Channels(int(call.args[0]), call.cuts, call.args[1])
    return Other(call, native, bfloat16)


def _single(stage: Stage, native: bool, bfloat16: bool) -> Step:
    if stage.conv is None or not _folding.folds(stage.norm):
        return Unfolded(stage)
    if native and _modules.is_pointwise(stage.conv):
        return Pointwise(stage, bfloat16)
    if native and _modules.is_depthwise(stage.conv):
        return Depthwise(stage, native)
    return Dense(stage, native, bfloat16)


class Plan:
    """A program with its weights prepared; valid while :meth:`is_current`.

    Args:
        program: What is run.
        autocast: Whether it runs under autocast to bfloat16, with parameters of float32.

    Raises:
        NotImplementedError: a parameter's changes cannot be told, or the program is one for eager alone.
    """

    def __init__(self, program: Program, autocast: bool = False) -> None:
        modules: list[Any] = [module for stage in program.stages() for module in modules_of(stage)]
        calls = [step for step in program.steps if isinstance(step, Call)]
        modules += [call.linear for call in calls if call.linear is not None]
        modules += [call.layer_norm for call in calls if _steps.is_float_norm(call.layer_norm)]
        if not all(tensor.is_cpu for m in modules for tensor in (*m.parameters(False), *m.buffers(False))):
            raise NotImplementedError("a parameter is not on the CPU")
        self.result_dtypes = dtypes_under_autocast(program) if autocast else {}
        convs = [conv for stage in program.stages() for conv in stage.convs]
        self.channels_last = any(is_channels_last(conv.weight) for conv in convs)
        program = _scales.absorbed(_branches.merged(program))
        scales = [stage.scale for stage in program.stages() if stage.scale is not None]
        self.sources = _folding.Sources(modules, scales)
        self.norms = self.sources.norms
        dtypes = {tensor.dtype for tensor in self.sources.tensors}
        if not (dtypes <= {torch.float32} or dtypes <= {torch.bfloat16}):
            raise NotImplementedError("the parameters are not all of float32, or all of bfloat16")
        if not all(tensor.is_cpu for tensor in self.sources.tensors):
            raise NotImplementedError("a factor is not on the CPU")
        self.dtype = dtypes.pop() if dtypes else torch.float32
        if autocast and self.dtype is not torch.float32:
            raise NotImplementedError("autocast of parameters that are not of float32")
        self.autocast = autocast
        self.bfloat16 = bfloat16 = autocast or self.dtype is torch.bfloat16
        self.outputs, self.spec = program.outputs, program.output_spec
        native = bool(convs) and functional.packs(convs[0].weight, torch.float32)
        if bfloat16 and not (native and _computes_in_float32(program)):
            raise NotImplementedError("a step of bfloat16 that has to see its dtype, or no kernels")
        self.kept = set(values_in(program.outputs))
        planned, self.count = _planned(program, native, bfloat16)
        self.steps = _released(planned, self.kept)
        self.weights = _gathered([step.run for step in self.steps]) if native else None
        self.lowered: dict[tuple[int, ...], list[Planned | NativeSegment]] = {}
        self.wholes: dict[tuple[int, ...], WholeProgram] = {}

    def is_current(self) -> bool:
        """Whether nothing that the prepared weights come from has changed."""
        return self.sources.are_current()

    def takes(self, x: Tensor) -> bool:
        """Whether an input has the dtype that the plan is for."""
        return x.dtype in self.result_dtypes if self.autocast else x.dtype is self.dtype

    def run(self, x: Tensor, steps: Sequence[Planned | NativeSegment] | None = None, watch: Watch | None = None) -> Any:
        """The module's output for an input (N, C, H, W).

        Args:
            x: the input.
            steps: what to run in place of what was prepared for this shape.
            watch: called in place of each step, with its number and what runs it.
        """
        keeps = self.channels_last or is_channels_last(x)
        values: list[Any] = [None] * self.count
        values[0] = prepared(x)
        steps = self.lowered.get(x.shape) if steps is None else steps
        if steps is None:
            self._run_and_lower(values)
        else:
            for number, step in enumerate(steps):
                if watch is None:
                    step.apply(values)
                else:
                    watch(number, lambda step=step: step.apply(values))
                for value in step.release:
                    values[value] = None
        results = substitute(self.outputs, values)
        if self.bfloat16:
            dtypes = self.result_dtypes.get(x.dtype) or [torch.bfloat16] * len(results)
            results = [
                r.to(dtype) if isinstance(r, Tensor) and r.dtype is torch.float32 else r
                for r, dtype in zip(results, dtypes, strict=True)
            ]
        if not keeps:
            results = [r.contiguous() if isinstance(r, Tensor) and r.dim() == 4 else r for r in results]
        return pytree.tree_unflatten(results, self.spec) if not self.spec.is_leaf() else results[0]

    def _run_and_lower(self, values: list[Any]) -> None:
        """Run, and keep what was run for inputs of this shape to come."""
        shape = tuple(values[0].shape)
        lowering = Lowering(self.steps, self.kept, self.weights, shape, self.bfloat16)
        for step in self.steps:
            lowering.run(step, values)
        lowering.finish(values)
        if len(self.lowered) >= _MOST_SHAPES:
            oldest = next(iter(self.lowered))
            self.lowered.pop(oldest)
            self.wholes.pop(oldest, None)
        self.lowered[shape] = lowering.result
        whole = WholeProgram.of(lowering.result, self.outputs) if self.spec.is_leaf() and not self.bfloat16 else None
        if whole is not None:
            self.wholes[shape] = whole


def prepared(x: Tensor) -> Tensor:
    """A program's input as its steps take it: what lies between those of a network of bfloat16 is float32, too."""
    return x.float().contiguous(memory_format=torch.channels_last)


def _computes_in_float32(program: Program) -> bool:
    """Whether a network of bfloat16 can have float32 between its steps: no step tells the one from the other, but for
    modules with tensors of their own, whose values are made what they were.
    """
    for step in program.steps:
        if isinstance(step, Stage):
            if step.norm is not None and not (step.convs and _folding.folds(step.norm)):
                return False
        elif isinstance(step, Call):
            if step.kind == "attribute" and isinstance(getattr(step.target, step.args), Tensor):
                return False
            if step.target in _CASTS or (step.target is getattr and "dtype" in step.args):
                return False
    return True


def dtypes_under_autocast(program: Program) -> dict[torch.dtype, list[torch.dtype]]:
    """By the dtype of a program's input, those of its results under autocast to bfloat16, where they are all known."""
    found = {dtype: _dtypes_for(program, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return {dtype: dtypes for dtype, dtypes in found.items() if dtypes is not None}


def _dtypes_for(program: Program, x: torch.dtype) -> list[torch.dtype] | None:
    known: dict[int, torch.dtype | None] = {0: x}

    def joined(*values: int) -> torch.dtype | None:
        dtypes = [known.get(value) for value in values]
        return None if None in dtypes else torch.float32 if torch.float32 in dtypes else torch.bfloat16

    for step in program.steps:
        if isinstance(step, Stage):
            own = torch.bfloat16 if step.convs else known.get(step.input)
            known[step.output] = own
            if step.residual is not None:
                known[step.output] = joined(step.output, step.residual)
        elif isinstance(step, Product):
            known[step.output] = joined(step.left, step.right)
        elif step.linear is not None:
            known[step.output] = torch.bfloat16
        elif step.pools is not None or step.flattens or step.gate is not None or _keeps_dtype(step.target):
            known[step.output] = joined(*inputs_of(step))
    found = [known.get(int(value)) if isinstance(value, Value) else None for value in program.outputs]
    return None if None in found else [dtype for dtype in found if dtype is not None]


def _keeps_dtype(target: Any) -> bool:
    return isinstance(target, _KEEPING) or _modules.drops(target)


def _planned(program: Program, native: bool, bfloat16: bool) -> tuple[list[Planned], int]:
    """The program's steps with their weights prepared, depthwise and pointwise stages together where they may be, and
    how many values there are.
    """
    pairs = _separable_ends(program)
    merged = {id(stage) for stage in pairs.values()}
    widening = _widening(program, merged) if native else {}
    steps: list[Planned] = []
    count = program.values
    for index, step in enumerate(program.steps):
        if isinstance(step, Call):
            run = _called(step, native, bfloat16)
            steps.append(Planned(run, step.output, inputs_of(step), modules=modules_of(step)))
        elif isinstance(step, Product):
            steps.append(Planned(_product(program, index, step), step.output, inputs_of(step)))
        elif id(step) in merged:
            depthwise = next(program.steps[i] for i, end in pairs.items() if end is step)
            assert isinstance(depthwise, Stage)
            taken = [depthwise.input] + ([] if step.residual is None else [step.residual])
            modules = modules_of(depthwise) + modules_of(step)
            steps.append(Planned(Separable(depthwise, step, bfloat16), step.output, taken, modules=modules))
        elif index + 1 in widening:
            pass  # in parts, each before the one that it widens
        elif step.mixed:
            parts = _parts(step, native, count, bfloat16, widening.get(index))
            steps += parts
            count += len(parts) - 1  # a value each, but for the last
        elif index not in pairs:
            run = _single(step, native, bfloat16)
            steps.append(Planned(run, step.output, inputs_of(step), modules=modules_of(step)))
    return steps, count


@dataclass
class _Widening:
    """What widens the input of one convolution of a mixed depthwise stage."""

    stage: Stage  # a 1x1 convolution, of all of the stage's channels or some
    inputs: slice | None  # the channels that it takes; None for all
    outputs: slice  # those of its own channels which the depthwise convolution takes


def _widening(program: Program, merged: set[int]) -> dict[int, list[_Widening]]:
    """By position, mixed depthwise stages behind a 1x1 stage which they alone take, each of their convolutions all its
    channels of one of the 1x1 convolutions; none of those ``merged`` with a depthwise stage before them.
    """
    users = program.users()
    found: dict[int, list[_Widening]] = {}
    for index, (wide, stage) in enumerate(itertools.pairwise(program.steps), 1):
        if not isinstance(wide, Stage) or not isinstance(stage, Stage) or not stage.mixed or not wide.convs:
            continue
        apart = stage.input != wide.output or users[wide.output] != 1 or wide.residual is not None or id(wide) in merged
        foldable = _folding.folds(wide.norm) and _folding.folds(stage.norm)
        if apart or not foldable or not all(map(_modules.is_pointwise, wide.convs)):
            continue
        if all(map(_modules.is_depthwise, stage.mixed)):
            parts = [_widened(wide, *channels) for channels in _channels([conv.in_channels for conv in stage.mixed])]
            if None not in parts:
                found[index] = [part for part in parts if part is not None]
    return found


def _channels(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First channel and the one behind the last, of parts of these sizes."""
    ends = list(itertools.accumulate(sizes))
    return list(zip([0, *ends], ends))


def _widened(wide: Stage, first: int, end: int) -> _Widening | None:
    """Of a 1x1 stage the convolution that makes all these channels."""
    outputs = _channels([conv.out_channels for conv in wide.convs])
    inputs = _channels([conv.in_channels for conv in wide.convs])
    for conv, (low, high), taken in zip(wide.convs, outputs, inputs, strict=True):
        if low <= first and end <= high:
            stage = replace(wide, output=-1, conv=conv, mixed=(), norm_channels=(low, high))
            return _Widening(stage, slice(*taken) if wide.mixed else None, slice(first - low, end - low))
    return None


def _parts(
    stage: Stage, native: bool, first: int, bfloat16: bool, widening: Sequence[_Widening] | None = None
) -> list[Planned]:
    """A mixed stage as steps for the convolutions on their own, with new values from ``first`` on."""
    steps: list[Planned] = []
    numbers = itertools.count(first)

    def add(run: Step, taken: int, modules: Sequence[nn.Module] = ()) -> int:
        steps.append(Planned(run, next(numbers), [taken], modules=modules))
        return steps[-1].output

    made: list[int] = []
    foldable = _folding.folds(stage.norm)
    inputs = _channels([conv.in_channels for conv in stage.mixed])
    outputs = _channels([conv.out_channels for conv in stage.mixed])
    for number, conv in enumerate(stage.mixed):
        source, channels = stage.input, slice(*inputs[number])
        if widening is not None:
            source, channels = widening[number].stage.input, widening[number].inputs
        if channels is not None:
            source = add(Channels(source, channels), source)
        if widening is not None:
            wide = replace(widening[number].stage, input=source)
            source = add(Pointwise(wide, bfloat16, widening[number].outputs), source, modules_of(wide))
        part = Stage(stage.name, source, -1, conv, norm_channels=outputs[number])
        if foldable:
            part.norm, part.activation = stage.norm, stage.activation
        made.append(add(_single(part, native, bfloat16), source, modules_of(part)))
    rest = Stage(stage.name, -1, residual=stage.residual)
    if not foldable:
        rest.norm, rest.activation = stage.norm, stage.activation
    taken = made if stage.residual is None else [*made, stage.residual]
    return [*steps, Planned(Joined(made, rest), stage.output, taken)]


def _released(steps: list[Planned], kept: set[int]) -> list[Planned]:
    """The steps with the values that each is the last one to take, so that memory is free for the next."""
    seen = set(kept)
    for step in reversed(steps):
        step.release = tuple(value for value in dict.fromkeys(step.taken) if value not in seen)
        seen.update(step.taken)
    return steps


def _gathered(steps: list[Any]) -> Tensor:
    """All packed weights behind one another, each at a cache line; the steps' own are parts of it from then on."""
    packing = [(step, step.packed) for step in steps if isinstance(step, Step) and step.packed is not None]
    total = 0
    for step, packed in packing:
        step.place = total
        total += -(-packed.numel() // LINE) * LINE
    weights = torch.zeros(total)
    for step, packed in packing:
        step.packed = weights[step.place : step.place + packed.numel()].copy_(packed)
    return weights
