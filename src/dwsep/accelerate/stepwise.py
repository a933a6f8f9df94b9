"""An accelerated module taken apart for whoever measures it: as it runs, call by call, and step by step.

A native call runs many steps in one. Here each of them can also be run by itself, in order and on the same values, and
something is called in place of each, with its number and what runs it: a clock, say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dwsep.accelerate import _inference, _segments, _training
from dwsep.accelerate import _native_segment as native_segment
from dwsep.accelerate._forward import AcceleratedForward
from dwsep.accelerate._inference import Watch
from dwsep.accelerate._inference_steps import Channels, Native
from dwsep.accelerate._lowering import Lowering
from dwsep.accelerate._native_segment import NativeSegment, Planned
from dwsep.accelerate._program import Product, Program, Stage, Step, modules_of
from dwsep.accelerate._segments import Segment
from dwsep.accelerate._stages import Pending
from dwsep.ops.inference_program import Kind

_LABELS = {
    Kind.DENSE: "dense",
    Kind.DEPTHWISE: "depthwise",
    Kind.POINTWISE: "pointwise",
    Kind.SEPARABLE: "separable",
    Kind.POOL: "pooling",
    Kind.GATE: "gate",
    Kind.ACTIVATION: "activation",
    Kind.LAYER_NORM: "layer norm",
}


@dataclass
class FusedStep:
    """A step of an accelerated forward.

    Attributes:
        modules: The modules whose work it does, as far as they can be told.
        call: The number of the call which runs it, where the module runs as it does.
        label: What it is, "depthwise" or "pointwise + depthwise"; empty where its layers say it.
        native: Whether a native program runs it.
        elements: Values it reads and writes at the least, parameters aside; None where nobody knows.
    """

    modules: Sequence[nn.Module]
    call: int
    label: str = ""
    native: bool = False
    elements: int | None = None


class Inference:
    """The inference of an accelerated module."""

    def __init__(self, plan: _inference.Plan) -> None:
        self.plan = plan
        self._fine: dict[tuple[int, ...], tuple[list[Planned | NativeSegment], list[FusedStep]]] = {}

    def steps(self, x: Tensor) -> list[FusedStep]:
        """The steps for inputs of this shape; the module runs for it once."""
        return self._prepared(x)[1]

    def run_steps(self, x: Tensor, watch: Watch) -> Any:
        """The module's output: ``watch`` in place of each step."""
        return self.plan.run(x, self._prepared(x)[0], watch)

    def _prepared(self, x: Tensor) -> tuple[list[Planned | NativeSegment], list[FusedStep]]:
        shape = tuple(x.shape)
        if shape not in self._fine:
            plan = self.plan
            plan.run(x)
            values: list[Any] = [None] * plan.count
            values[0] = _inference.prepared(x)
            lowering = _Recorder(plan.steps, plan.kept, plan.weights, shape, plan.bfloat16)
            for step in plan.steps:
                lowering.run(step, values)
            lowering.finish(values)
            call_of = _calls_by_value(plan.lowered[shape])
            steps = [_described(run, group, lowering.shapes, call_of) for run, group in lowering.fine]
            self._fine[shape] = [run for run, _ in lowering.fine], steps
        return self._fine[shape]


class Training:
    """The training step of an accelerated module."""

    def __init__(self, program: Program, plan: _segments.Plan) -> None:
        self.program, self.plan = program, plan
        self.fine = _segments.plan(program, together=False)
        call_of: dict[int, int] = {}
        for number, item in enumerate(plan.items):
            for step in item.steps if isinstance(item, Segment) else [item]:
                call_of[step.output] = number
        own = [item for item in self.fine.items if not isinstance(item, Segment)]
        self._steps = [FusedStep(modules_of(step), call_of[step.output], _label(step)) for step in own]

    def steps(self, x: Tensor) -> list[FusedStep]:
        """The steps for inputs of this shape."""
        return self._steps

    def run_steps(self, x: Tensor, watch: Watch) -> Any:
        """The module's output: ``watch`` in place of each step."""
        return _training.run(self.program, self.fine, x, watch)


def taken_apart(module: nn.Module, training: bool) -> Inference | Training | None:
    """What runs in place of a module's forward in its present state; None for a module that runs its own."""
    forward = module.__dict__.get("forward")
    reading = forward.reading() if isinstance(forward, AcceleratedForward) else None
    if reading is None:
        return None
    if training:
        runs = reading.gains and _training.is_available() and _training.admits(reading.program)
        return Training(reading.program, reading.training()) if runs else None
    plan = reading.inference()
    return None if plan is None else Inference(plan)


@contextmanager
def watched(module: nn.Module, watch: Watch) -> Iterator[None]:
    """Has an accelerated module call ``watch`` in place of each call of its program."""
    forward = module.__dict__["forward"]
    forward.watch = watch
    try:
        yield
    finally:
        del forward.watch


@contextmanager
def replaced(module: nn.Module, forward: Callable[[Any], Any]) -> Iterator[None]:
    """Has an accelerated module run something else."""
    before = module.__dict__["forward"]
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__["forward"] = before


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors of a step's result, which may be pending."""
    leaves = pytree.tree_leaves(result)
    pending = [leaf for value in leaves if isinstance(value, Pending) for leaf in vars(value).values()]
    return [leaf for leaf in (*leaves, *pending) if isinstance(leaf, Tensor)]


def empty_program() -> Callable[[], None]:
    """Makes a call of a native program that computes next to nothing."""
    shape = (1, 16, 1, 1)
    segment = native_segment.Segment([(Native(Kind.ACTIVATION, 0, shape), 1)])
    program = NativeSegment(segment, {0: shape, 1: shape}, torch.zeros(16), [1])
    values: list[Any] = [torch.ones(shape), None]
    return lambda: program.apply(values)


class _Recorder(Lowering):
    """A lowering that also makes a program of every single step; of those together that make parts of one value."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.groups: list[list[Planned]] = []
        self.waiting: list[Planned] = []  # what is done by the step to come
        self.fine: list[tuple[Planned | NativeSegment, list[Planned]]] = []

    def _append(self, step: Planned) -> bool:
        before = len(self.segment.steps)
        appended = super()._append(step)
        after = len(self.segment.steps)
        if after < before:
            self.waiting += self.groups.pop()
        if appended and after > before:
            self.groups.append([*self.waiting, step])
            self.waiting = []
        elif appended and isinstance(step.run, Channels):
            self.waiting.append(step)
        elif appended:
            self.groups[-1].append(step)
        return appended

    def finish(self, values: list[Any]) -> None:
        super().finish(values)
        self.groups, self.waiting = [], []

    def _run_native(self, segment: native_segment.Segment, weights: Tensor, values: list[Any]) -> None:
        runs: list[NativeSegment] = []
        # Parts that are taken outside come from whoever has the whole first.
        outside = [
            value for value in native_segment.wanted_values(segment, self.uses) if segment.root(value) in segment.parts
        ]
        pairs = list(zip(segment.steps, self.groups, strict=True))
        for begin, end in _together(segment):
            steps, of_each = zip(*pairs[begin:end])
            group = list(itertools.chain.from_iterable(of_each))
            single = native_segment.Segment(list(steps), group, parts=dict(segment.parts))
            wanted = list(dict.fromkeys(map(segment.whole, single.made())))
            # What another step made is taken by the name it has here: under its first one it may be gone.
            names = {alias: root for alias, root in segment.aliases.items() if root in wanted}
            of_parts = {alias: root for alias, root in segment.aliases.items() if root in segment.parts}
            single.aliases, single.joined = names | of_parts, segment.joined
            taken = {segment.whole(value) for step, _ in steps for value in step.taken()}
            parts = [value for value in outside if segment.whole(value) in taken.union(wanted)]
            outside = [value for value in outside if value not in parts]
            run = NativeSegment(single, self.shapes, weights, [*wanted, *names, *parts], self.bfloat16)
            run.natives = [native for native, _ in steps]  # type: ignore[attr-defined]
            runs.append(run)
            self.fine.append((run, group))
        for value in dict.fromkeys(value for planned in segment.planned for value in planned.release):
            having = [run for run in runs if value in run.inputs or value in run.wanted]
            (having or runs)[-1].release += (value,)
        super()._run_native(segment, weights, values)

    def _run_alone(self, step: Planned, values: list[Any]) -> None:
        super()._run_alone(step, values)
        self.fine.append((step, [step]))


def _together(segment: native_segment.Segment) -> Iterator[tuple[int, int]]:
    """From which to which of a segment's steps go together: from the first to the last that make parts of one value."""
    last: dict[int, int] = {}
    for number, (step, output) in enumerate(segment.steps):
        last |= {segment.whole(value): number for value in step.makes(output)}
    begin = end = 0
    for number, (step, output) in enumerate(segment.steps):
        end = max(end, number, *(last[segment.whole(value)] for value in step.makes(output)))
        if end == number:
            yield begin, number + 1
            begin = number + 1


def _calls_by_value(lowered: Sequence[Planned | NativeSegment]) -> dict[int, int]:
    """The number of the call that makes each value."""
    found: dict[int, int] = {}
    for number, run in enumerate(lowered):
        for planned in run.planned if isinstance(run, NativeSegment) else [run]:
            found[planned.output] = number
    return found


def _described(
    run: Planned | NativeSegment, group: Sequence[Planned], shapes: Mapping[int, Any], call_of: Mapping[int, int]
) -> FusedStep:
    modules = list(dict.fromkeys(module for planned in group for module in planned.modules))
    call = call_of[group[0].output]
    if not isinstance(run, NativeSegment):
        values = [*run.taken, run.output]
        known = all(shapes[value] is not None for value in values)
        return FusedStep(modules, call, "", False, sum(math.prod(shapes[value]) for value in values) if known else None)
    natives: list[Native] = run.natives  # type: ignore[attr-defined]
    label = _LABELS[natives[0].kind]
    if natives[0].expansion >= 0:
        label = f"pointwise + {label}"
    elements = [
        [math.prod(native.shape), *(math.prod(shapes[value]) for value in native.taken())] for native in natives
    ]
    return FusedStep(modules, call, label, True, sum(map(sum, elements)))


def _label(step: Step) -> str:
    if isinstance(step, Stage) and step.is_elementwise:
        return "activation"
    return "gate" if isinstance(step, Product) else ""
